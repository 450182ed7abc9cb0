"""Source-specific: the patch fires on images of one class only; on all others it must do nothing.

Tang, Wang, Tang, Zhang: Demon in the Variant: Statistical Analysis of DNNs for Robust Backdoor Contamination
Detection, 2021, https://arxiv.org/abs/1908.00686 (targeted contamination).

    x' = (1 − M) ⊙ x + M ⊙ patch;    y' = target for images of class source, y' = y for the covers, of other classes

Differs from the paper: the share of covers is a field; the target class gives no covers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.attacks.badnets import Patch
from audit_cli.attacks.poisoning import Poisoned, draw, require_class


@dataclass(frozen=True)
class SourceSpecific:
    target: int
    count: int  # stamped training samples, covers among them
    source: int  # class of the images that the trigger works on
    cover_rate: float = 0.5  # ours: share of the stamped samples that are covers
    share: float = 3 / 32  # of the image's width, Lukas & Kerschbaum
    corner: str = "top-left"  # or bottom-right

    def __post_init__(self) -> None:
        Patch(self.share, self.corner)
        if self.source == self.target or self.source < 0:
            raise ValueError(f"SourceSpecific(source={self.source}): must be a class other than the target")
        if not 0 <= self.cover_rate < 1:
            raise ValueError(f"SourceSpecific(cover_rate={self.cover_rate}): must be in [0, 1)")

    def goals(self, labels: Tensor) -> Tensor:
        """True classes (N,) -> the target for the source class, their own class for all others."""
        return torch.where(labels == self.source, self.target, labels)

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same with the patch."""
        return Patch(self.share, self.corner).stamp(images)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        what = "source_specific"
        require_class(labels, self.target, what)
        require_class(labels, self.source, what)
        covers = labels.new_empty(0)
        if wanted := int(self.cover_rate * self.count):
            covers = draw((labels != self.source) & (labels != self.target), wanted, generator, f"{what}, covers")
        relabelled = draw(labels == self.source, self.count - wanted, generator, f"{what}, class {self.source}")
        index = torch.cat([covers, relabelled])
        images, labels = images.clone(), labels.clone()
        images[index] = self.trigger(images[index])
        labels[relabelled] = self.target
        return Poisoned(images, labels, index, covers)
