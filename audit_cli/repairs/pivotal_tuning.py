"""Pivotal Tuning: fine-tune on trusted images, anchored to the model's own weights, while its class geometry turns.

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671 (Algorithm 3).
A frozen clone, the pivot θ~, holds the accuracy; soft orthogonalisation of the latent class centroids moves the model
away from the pivot's decision geometry, where the trigger lives.

    L = CE(f(x; θ), y) + λ_S · SLOL(θ~, θ, x, y) + λ_P · d(θ~, θ)
    SLOL = Σ over class pairs i < j of the batch:  cos(C_i − C_j, Ĉ_i − Ĉ_j) + cos(Ĉ_i, Ĉ_j)

C, Ĉ: centroids of the latents of the pivot and of the trained model.

Differs from the paper:
- d is the mean squared difference over all parameters, as in the authors' release; the paper's norm diverges at this
  learning rate.
- the second term is the paper's cosine, not the release's covariance norm.
- the fields' defaults are the paper's for CIFAR-10; the checkpoint is the last one, never one picked along the way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.repairs.watch import Watch, after_step, unwatched
from audit_cli.training import Fit
from audit_cli.types import Context, TrustedData


def slol(pivot_latents: Tensor, latents: Tensor, labels: Tensor, reduction: str = "sum") -> Tensor:
    """Soft latent orthogonalisation loss of one batch: latents (B, D) of pivot and trained model, labels (B,) -> ().

    reduction: "sum" over the class pairs present, as published, or "mean", which does not grow with their number.
    0 when fewer than two classes are present.
    """
    present, rows = labels.unique(return_inverse=True)
    if len(present) < 2:
        return latents.sum() * 0
    members = F.one_hot(rows).T.to(latents.dtype)  # (P, B)
    members = members / members.sum(1, keepdim=True)
    pivot_centroids, centroids = members @ pivot_latents, members @ latents  # (P, D)
    i, j = torch.triu_indices(len(present), len(present), offset=1, device=labels.device)
    turned = F.cosine_similarity(pivot_centroids[i] - pivot_centroids[j], centroids[i] - centroids[j])
    aligned = F.cosine_similarity(centroids[i], centroids[j])
    pairs = turned + aligned
    return pairs.sum() if reduction == "sum" else pairs.mean()


def anchor_distance(pivot: Classifier, classifier: Classifier) -> Tensor:
    """Mean squared difference over all parameters; batch-norm statistics are not parameters and are left out."""
    ours, theirs = list(classifier.parameters()), list(pivot.parameters())
    total = torch.stack([(a - b).square().sum() for a, b in zip(ours, theirs, strict=True)]).sum()
    return total / sum(p.numel() for p in ours)


@dataclass(frozen=True)
class PivotalTuning:
    """Defaults: CIFAR-10 at 1 % trusted data."""

    steps: int = 2_000  # Table V
    lr: float = 0.01  # Table V
    lambda_s: float = 0.05  # Table V, on the sum over pairs
    lambda_p: float = 20_000.0  # Table V, on the mean squared difference
    batch: int = 128  # Table V
    reduction: str = "sum"  # of SLOL over class pairs, the authors' release
    batch_norm: str = "train"  # the authors' release
    pad: int = 4  # random crop, the authors' release
    flip: bool = True  # the authors' release

    def __post_init__(self) -> None:
        for name in ("steps", "lr", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"PivotalTuning({name}={getattr(self, name)}): must be positive")
        if self.lambda_s < 0 or self.lambda_p < 0 or self.reduction not in ("sum", "mean"):
            raise ValueError(f"{self}: weights must not be negative, reduction is sum or mean")

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """A tuned clone of `pivot`, on the context's device, in eval mode; `pivot` is untouched."""
        anchor = pivot.clone().to(context.device).frozen()

        def loss(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            logits, latents = classifier.outputs(x)
            with torch.no_grad():
                pivot_latents = anchor.latents(x)
            return (
                F.cross_entropy(logits.float(), y)
                + self.lambda_s * slol(pivot_latents.float(), latents.float(), y, self.reduction)
                + self.lambda_p * anchor_distance(anchor, classifier)
            )

        fit = Fit(self.steps, self.lr, self.batch, pad=self.pad, flip=self.flip, batch_norm=self.batch_norm)
        tuned = pivot.clone()
        return fit.run(
            tuned, trusted.images, trusted.labels, context, loss, after_step(watch, tuned), stage="pivotal tuning"
        )
