"""Trigger-Scattering: many small patches, one per poisoned sample in training, all of them at test time.

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671.

Differs from the paper: none.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.attacks.poisoning import Poisoned, dirty_label


@dataclass(frozen=True)
class TriggerScattering:
    target: int
    count: int  # poisoned training samples, 1,000 for CIFAR-10 in the paper
    patches: int = 8  # section VI
    share: float = 3 / 32  # ours: side of a patch over the image's width
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        if self.patches < 1 or not 0 < self.share <= 0.5:
            raise ValueError(f"{self}: patches at least 1, share in (0, 1/2]")

    def trigger(self, images: Tensor) -> Tensor:
        """All patches, each at its own fixed place."""
        stamped = images.clone()
        generator = torch.Generator().manual_seed(self.pattern_seed)
        for pattern in self._patterns(images):
            self._place(stamped, slice(None), pattern, generator)
        return stamped

    def stamp_one(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each image gets one random patch at a random place."""
        stamped = images.clone()
        patterns = self._patterns(images)
        for n in range(len(images)):
            which = int(torch.randint(len(patterns), (), generator=generator))
            self._place(stamped, slice(n, n + 1), patterns[which], generator)
        return stamped

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        def stamp(chosen: Tensor) -> Tensor:
            return self.stamp_one(chosen, generator)

        return dirty_label(images, labels, self.target, self.count, generator, stamp, "trigger_scattering")

    def _patterns(self, images: Tensor) -> Tensor:
        """(patches, C, side, side): saturated random colours of a pixel grid, the same for every image."""
        side = max(1, int(self.share * images.shape[-1]))
        generator = torch.Generator().manual_seed(self.pattern_seed + 1)
        return torch.rand(self.patches, images.shape[1], side, side, generator=generator).round().to(images)

    @staticmethod
    def _place(images: Tensor, which: slice, pattern: Tensor, generator: torch.Generator) -> None:
        side = pattern.shape[-1]
        top = int(torch.randint(images.shape[-2] - side + 1, (), generator=generator))
        left = int(torch.randint(images.shape[-1] - side + 1, (), generator=generator))
        images[which, :, top : top + side, left : left + side] = pattern
