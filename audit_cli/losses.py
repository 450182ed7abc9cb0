"""Regularisers that may keep a backdoor out while training, as losses for `Fit.run`.

Truong et al.: Systematic Evaluation of Backdoor Data Poisoning Attacks on Image Classifiers, 2020,
https://arxiv.org/abs/2004.11514, compares these four. Each is cross-entropy plus its term, or on mixed data:

    contrastive             + λ · mean over pairs: d² if same class, max(0, margin − d)² if not   (Hadsell et al., 2006)
    logit squeezing         + λ · mean ‖logits‖²                                                   (Kannan et al., 2018)
    soft nearest neighbour  − λ · mean log(Σ same class e^(−d²/T) / Σ all others e^(−d²/T))        (Frosst et al., 2019)
    manifold mixup          cross-entropy with a random layer's output mixed within the batch       (Verma et al., 2019)

Differs from the papers:
- distances d are taken between latents of length 1, so that margin and temperature mean the same for every network.
- a positive λ of the soft-nearest-neighbour loss disentangles the classes; Frosst et al. also use negative ones.
- the weights are ours; the evaluation states none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.augmented import Cutout, LabelSmoothing
from audit_cli.classifier import Classifier
from audit_cli.errors import UsageError


def squared_distances(latents: Tensor) -> Tensor:
    """Latents (B, D) -> (B, B) squared distances between the rows scaled to length 1, in [0, 4]."""
    unit = F.normalize(latents.float(), dim=1)
    return (2 - 2 * unit @ unit.T).clamp_min(0)


def contrastive(latents: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Mean over the pairs i < j of the batch; 0 for a single image."""
    i, j = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    if len(i) == 0:
        return latents.sum() * 0
    squared = squared_distances(latents)[i, j]
    apart = (margin - (squared + 1e-12).sqrt()).clamp_min(0).square()  # 1e-12: the root has no slope at 0
    return torch.where(labels[i] == labels[j], squared, apart).mean()


def soft_nearest_neighbour(latents: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean over the images that have another one of their class in the batch; 0 when there is none."""
    logits = (-squared_distances(latents) / temperature).masked_fill(_diagonal(labels), -torch.inf)
    same = (labels[:, None] == labels[None, :]) & ~_diagonal(labels)
    counted = same.any(1)
    if not bool(counted.any()):
        return latents.sum() * 0
    near = logits.masked_fill(~same, -torch.inf)[counted].logsumexp(1)
    return (logits[counted].logsumexp(1) - near).mean()


def _diagonal(labels: Tensor) -> Tensor:
    return torch.eye(len(labels), dtype=torch.bool, device=labels.device)


@dataclass(frozen=True)
class Contrastive:
    weight: float = 0.5  # ours
    margin: float = 1.0  # ours, between latents of length 1

    def __call__(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        logits, latents = classifier.outputs(images)
        return F.cross_entropy(logits.float(), labels) + self.weight * contrastive(latents, labels, self.margin)


@dataclass(frozen=True)
class LogitSqueezing:
    weight: float = 0.01  # ours

    def __call__(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        logits: Tensor = classifier(images).float()
        return F.cross_entropy(logits, labels) + self.weight * logits.square().sum(1).mean()


@dataclass(frozen=True)
class SoftNearestNeighbour:
    weight: float = 0.1  # ours
    temperature: float = 0.5  # ours, for squared distances in [0, 4]

    def __call__(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        logits, latents = classifier.outputs(images)
        term = soft_nearest_neighbour(latents, labels, self.temperature)
        return F.cross_entropy(logits.float(), labels) + self.weight * term


@dataclass(frozen=True)
class ManifoldMixup:
    """`generator` draws layer, partners and share; a resumable run must name it in `Resume.generators`."""

    generator: torch.Generator
    alpha: float = 2.0  # of the Beta distribution of the share, as in the paper
    layers: tuple[str, ...] = ("", "layer1", "layer2")  # modules whose output is mixed; "" the input

    def __post_init__(self) -> None:
        if self.alpha <= 0 or not self.layers:
            raise ValueError(f"ManifoldMixup(alpha={self.alpha}, layers={self.layers}): positive; at least one")

    def __call__(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        partner = torch.randperm(len(labels), generator=self.generator).to(labels.device)
        layer = self.layers[int(torch.randint(len(self.layers), (), generator=self.generator))]
        share = self._beta()

        def mix(x: Tensor) -> Tensor:
            return share * x + (1 - share) * x[partner]

        logits = self._hooked(classifier, layer, images, mix) if layer else classifier(mix(images)).float()
        return share * F.cross_entropy(logits, labels) + (1 - share) * F.cross_entropy(logits, labels[partner])

    @staticmethod
    def _hooked(classifier: Classifier, layer: str, images: Tensor, mix: Callable[[Tensor], Tensor]) -> Tensor:
        try:
            module = classifier.module.get_submodule(layer)
        except AttributeError as error:
            raise UsageError(
                f"{classifier.arch}: has no module `{layer}` to mix at; name others in `layers`"
            ) from error
        hook = module.register_forward_hook(lambda _, inputs, output: mix(cast(Tensor, output)))
        try:
            return cast(Tensor, classifier(images)).float()
        finally:
            hook.remove()

    def _beta(self) -> float:
        """One draw of Beta(α, α), as the share of one of two Gamma(α) variables."""
        a, b = torch._standard_gamma(torch.full((2,), self.alpha, dtype=torch.float64), generator=self.generator)
        return float(a / (a + b))


LOSSES: dict[str, Callable[[torch.Generator], Callable[[Classifier, Tensor, Tensor], Tensor]]] = {
    "contrastive": lambda generator: Contrastive(),
    "cutout": Cutout,
    "label_smoothing": lambda generator: LabelSmoothing(),
    "logit_squeezing": lambda generator: LogitSqueezing(),
    "manifold_mixup": ManifoldMixup,
    "mixup": lambda generator: ManifoldMixup(generator, alpha=1.0, layers=("",)),  # α as for CIFAR-10
    "soft_nearest_neighbour": lambda generator: SoftNearestNeighbour(),
}  # name -> the loss with its defaults, given the generator it may draw from
