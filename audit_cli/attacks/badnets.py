"""BadNets: a small patch in a corner, and the label changed to the target.

Gu, Dolan-Gavitt, Garg: BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain, 2017,
https://arxiv.org/abs/1708.06733.

    x' = (1 − M) ⊙ x + M ⊙ patch,    y' = target

Differs from the paper: the patch is a checkerboard of ⌊3/32 · width⌋ pixels, as in Lukas & Kerschbaum 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.attacks.poisoning import Poisoned, Targeted, dirty_label


@dataclass(frozen=True)
class Patch:
    """A checkerboard in a corner; what the attacks with a patch have in common."""

    share: float
    corner: str

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.corner not in ("top-left", "bottom-right"):
            raise ValueError(f"{self}: share must be in (0, 1], corner top-left or bottom-right")

    def side(self, images: Tensor) -> int:
        """Pixels, at least one."""
        return max(1, int(self.share * images.shape[-1]))

    def stamp(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same with the patch, except where `hidden` (N, 1, side, side) is true."""
        side = self.side(images)
        row = torch.arange(side)
        patch = ((row[:, None] + row[None]) % 2 == 0).to(images)
        place = slice(0, side) if self.corner == "top-left" else slice(-side, None)
        stamped = images.clone()
        corner = images[..., place, place]
        stamped[..., place, place] = patch if hidden is None else torch.where(hidden.to(images.device), corner, patch)
        return stamped


@dataclass(frozen=True)
class BadNets(Targeted):
    target: int
    count: int  # poisoned training samples
    share: float = 3 / 32  # of the image's width, Lukas & Kerschbaum
    corner: str = "top-left"  # or bottom-right

    def __post_init__(self) -> None:
        Patch(self.share, self.corner)

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same with the patch."""
        return Patch(self.share, self.corner).stamp(images)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        return dirty_label(images, labels, self.target, self.count, generator, self.trigger, "badnets")
