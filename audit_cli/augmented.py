"""What strangers train clean networks with, as losses for `Fit.run`: other recipes than crops and flips alone.

    label smoothing     cross-entropy with (1 − ε) · label + ε / classes                      (Szegedy et al., 2016)
    mixup               λ · ce(λ x + (1 − λ) x', y) + (1 − λ) · ce(…, y'), λ ~ Beta(α, α)     (Zhang et al., 2018)
    cutout              cross-entropy with a square of every image blanked                    (DeVries & Taylor, 2017)

Differs from the papers: mixup is `ManifoldMixup` at the input alone; cutout blanks with the batch's mean colour, which
is the zero of a normalised image up to the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.classifier import Classifier


@dataclass(frozen=True)
class LabelSmoothing:
    share: float = 0.1  # as in the paper

    def __call__(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(classifier(images).float(), labels, label_smoothing=self.share)


@dataclass(frozen=True)
class Cutout:
    """`generator` draws the places; a resumable run must name it in `Resume.generators`."""

    generator: torch.Generator
    share: float = 0.5  # of the image's side: 16 of 32 pixels, as in the paper for CIFAR-10

    def __call__(self, classifier: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(classifier(self.blanked(images)).float(), labels)

    def blanked(self, images: Tensor) -> Tensor:
        """(B, C, H, W) with a square in each, centred on any pixel, so that it may reach over the border."""
        B, _, H, W = images.shape
        half = self.share * torch.tensor([H, W]) / 2
        centre = torch.rand(B, 2, generator=self.generator) * torch.tensor([H, W])
        rows = (torch.arange(H) + 0.5 - centre[:, :1]).abs() < half[0]
        columns = (torch.arange(W) + 0.5 - centre[:, 1:]).abs() < half[1]
        square = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
        return torch.where(square, images.mean((0, 2, 3), keepdim=True), images)
