"""Sharpness-aware fine-tuning: minimise the loss at the worst weights nearby, large weights being moved the most.

Zhu, Wei, Shen, Fan, Wu: Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization, 2023,
https://arxiv.org/abs/2304.11823. Backdoor neurons have large weights; perturbing in proportion to |θ| makes the update
shrink them.

    e = ρ · |θ|² · ∇L(θ) / ‖ |θ| · ∇L(θ) ‖₂        θ ← θ − η · ∇L(θ + e)

Differs from the paper: none. ρ: for ResNets on CIFAR-10.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.repairs.watch import Watch, unwatched
from audit_cli.training import Fit, cross_entropy
from audit_cli.types import Context, TrustedData


@dataclass(frozen=True)
class SharpnessAware:
    """Fine-tuning at perturbed weights."""

    steps: int = 400  # ours
    lr: float = 0.01  # section 4
    radius: float = 2.0  # ρ, section 4
    batch: int = 128
    pad: int = 4  # pixels of random shift, as Pivotal Tuning
    flip: bool = True

    def __post_init__(self) -> None:
        if min(self.steps, self.lr, self.radius, self.batch) <= 0:
            raise ValueError(f"{self}: steps, lr, radius and batch must be positive")

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """A tuned clone of `pivot`, on the context's device, in eval mode; `pivot` is untouched."""
        repaired = pivot.clone().on(context.device)
        parameters = list(repaired.parameters())
        moved: list[Tensor] = []

        def loss(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            gradients = torch.autograd.grad(cross_entropy(classifier, x, y), parameters)
            moved[:] = perturbation([p.detach() for p in parameters], gradients, self.radius)
            shift(parameters, moved, 1.0)
            return cross_entropy(classifier, x, y)

        def after_step(step: int) -> None:
            shift(parameters, moved, -1.0)  # the update was made at the perturbed weights; SGD's is the same at both
            watch(step, repaired)

        fit = Fit(self.steps, self.lr, self.batch, schedule="cosine", pad=self.pad, flip=self.flip)
        return fit.run(
            repaired, trusted.images, trusted.labels, context, loss, after_step, stage="sharpness-aware fine-tuning"
        )


def perturbation(parameters: list[Tensor], gradients: tuple[Tensor, ...], radius: float) -> list[Tensor]:
    """e of the docstring above, one tensor per parameter."""
    scaled = [p.abs() * g for p, g in zip(parameters, gradients, strict=True)]
    norm = torch.stack([s.norm() for s in scaled]).norm().clamp(min=1e-12)
    return [radius * p.abs() * s / norm for p, s in zip(parameters, scaled, strict=True)]


@torch.no_grad()
def shift(parameters: Sequence[Tensor], by: Sequence[Tensor], factor: float) -> None:
    for parameter, change in zip(parameters, by, strict=True):
        parameter.add_(change, alpha=factor)
