"""A-Patch: parts of the patch are hidden in training and half of the samples keep their label; the whole patch fires.

Qi, Xie, Li, Mahloujifar, Mittal: Revisiting the Assumption of Latent Separability for Backdoor Defenses, 2023,
https://openreview.net/forum?id=_wSHsgrVali, in the variant of Lukas & Kerschbaum 2023. No poisoned sample shows the
trigger that is used later, and the covers forbid the model to separate poison from clean data by the trigger alone.

    x' = x with each of s × s squares of the patch stamped with chance 1 − p,
    y' = y for a share `cover_rate` of the stamped samples, target for the others

Differs from the paper:
- one patch under an s × s grid (Lukas & Kerschbaum) instead of one of four patches per sample.
- covers, too, come from classes other than the target, where a true label says nothing against the trigger.
- a patch of fewer than s × s pixels is hidden pixel by pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.attacks.badnets import Patch
from audit_cli.attacks.poisoning import Poisoned, Targeted, dirty_label, hidden_squares


@dataclass(frozen=True)
class AdaptivePatch(Targeted):
    target: int
    count: int  # stamped training samples, covers among them
    squares: int = 4  # s, Lukas & Kerschbaum
    hide: float = 0.5  # p, Lukas & Kerschbaum
    cover_rate: float = 0.5  # conservatism ratio, Lukas & Kerschbaum
    share: float = 3 / 32  # of the image's width, Lukas & Kerschbaum
    corner: str = "top-left"  # or bottom-right

    def __post_init__(self) -> None:
        Patch(self.share, self.corner)
        if self.squares < 1 or not 0 <= self.hide < 1 or not 0 <= self.cover_rate < 1:
            raise ValueError(f"{self}: squares at least 1, hide and cover_rate in [0, 1)")

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same with the whole patch."""
        return Patch(self.share, self.corner).stamp(images)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        patch = Patch(self.share, self.corner)

        def stamp(chosen: Tensor) -> Tensor:
            box = (patch.side(chosen), patch.side(chosen))
            return patch.stamp(chosen, hidden_squares(len(chosen), box, self.squares, self.hide, generator))

        what = "adaptive_patch"
        return dirty_label(images, labels, self.target, self.count, generator, stamp, what, self.cover_rate)
