"""C-BadNets: the BadNets patch on images that already are of the target class, so that every label is true.

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671; the idea of a clean-label patch is Turner, Tsipras, Madry: Label-Consistent Backdoor
Attacks, 2019, https://arxiv.org/abs/1912.02771.

    x' = (1 − M) ⊙ x + M ⊙ patch  for images of class target,    y' = y

Differs from the paper: none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.attacks.badnets import Patch
from audit_cli.attacks.poisoning import Poisoned, Targeted, clean_label


@dataclass(frozen=True)
class CleanBadNets(Targeted):
    target: int
    count: int  # poisoned training samples, 750 for CIFAR-10 in Lukas & Kerschbaum's Table II
    share: float = 3 / 32  # of the image's width, Lukas & Kerschbaum
    corner: str = "top-left"  # or bottom-right

    def __post_init__(self) -> None:
        Patch(self.share, self.corner)

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same with the patch."""
        return Patch(self.share, self.corner).stamp(images)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        return clean_label(images, labels, self.target, self.count, generator, self.trigger, "clean_badnets")
