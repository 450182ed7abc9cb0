"""The trade-off curve of a repair: accuracy against distance, recorded while it runs.

Nothing is ever chosen along the curve: the result of a repair is its last step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.metrics import cda, evaluating, predict
from audit_cli.repairs.pivotal_tuning import anchor_distance, slol
from audit_cli.types import Context, TrustedData

BATCH = 64  # images at once


@dataclass(frozen=True)
class Point:
    """One point of the curve. anchor: mean squared distance to the pivot's weights. slol: mean over class pairs."""

    step: int
    cda: float
    anchor: float
    slol: float


@dataclass
class Trajectory:
    """A Watch that measures on `holdout` every `every` steps. The pivot must be frozen and on the context's device."""

    pivot: Classifier
    holdout: TrustedData
    context: Context
    every: int = 25
    points: list[Point] = field(default_factory=list)

    @torch.no_grad()
    def __call__(self, step: int, classifier: Classifier) -> None:
        if step % self.every:
            return
        labels = self.holdout.labels
        turned = slol(self._latents(self.pivot), self._latents(classifier), labels, "mean")
        accuracy = cda(predict(classifier, self.holdout.images, self.context), labels)
        self.points.append(Point(step, accuracy, float(anchor_distance(self.pivot, classifier)), float(turned)))

    def _latents(self, classifier: Classifier) -> Tensor:
        """(N, D) of the holdout, on its device."""
        found = []
        with evaluating(classifier), self.context.autocast():
            for part in self.holdout.images.split(BATCH):
                self.context.budget.check()
                found.append(classifier.latents(part.to(self.context.device)).float().to(part.device))
        return torch.cat(found)
