"""BadNets: a small patch in a corner, and the label changed to the target.

Gu, Dolan-Gavitt, Garg: BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain, 2017,
https://arxiv.org/abs/1708.06733.

Differs from the paper: the patch is a checkerboard of ⌊3/32 · width⌋ pixels, as in Lukas & Kerschbaum 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.attacks.poisoning import Poisoned, dirty_label


@dataclass(frozen=True)
class BadNets:
    target: int
    count: int  # poisoned training samples
    share: float = 3 / 32  # of the image's width, at least one pixel
    corner: str = "top-left"  # or bottom-right

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.corner not in ("top-left", "bottom-right"):
            raise ValueError(f"{self}: share must be in (0, 1], corner top-left or bottom-right")

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same with the patch."""
        side = max(1, int(self.share * images.shape[-1]))
        row = torch.arange(side)
        patch = ((row[:, None] + row[None]) % 2 == 0).to(images.dtype)
        stamped = images.clone()
        if self.corner == "top-left":
            stamped[..., :side, :side] = patch
        else:
            stamped[..., -side:, -side:] = patch
        return stamped

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        return dirty_label(images, labels, self.target, self.count, generator, self.trigger, "badnets")
