"""Trigger-Scattering: many small patches, one per poisoned sample in training, all of them at test time.

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671. Each patch alone is a weak trigger that is hard to find; together they are strong.

    in training   x' = x with one of the k patches, at a random place,    y' = target
    at test time  x' = x with all k, each at a place of its own

Differs from the paper: the patches are mosaics of saturated colours drawn from `pattern_seed`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.attacks.poisoning import Poisoned, Targeted, dirty_label
from audit_cli.errors import UsageError


@dataclass(frozen=True)
class TriggerScattering(Targeted):
    target: int
    count: int  # poisoned training samples, 1,000 for CIFAR-10 in the paper
    patches: int = 8  # k, section VI
    share: float = 3 / 32  # ours: side of a patch over the image's width
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        if self.patches < 1 or not 0 < self.share <= 0.5:
            raise ValueError(f"{self}: patches at least 1, share in (0, 1/2]")

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same with all patches; no two of them overlap."""
        patterns = self.patterns(images)
        side = patterns.shape[-1]
        down, across = images.shape[-2] // side, images.shape[-1] // side  # cells of a grid, each as large as a patch
        cells = torch.randperm(down * across, generator=torch.Generator().manual_seed(self.pattern_seed))
        if len(cells) < len(patterns):
            raise UsageError(f"{self}: only {len(cells)} patches fit an image; lower `patches` or `share`")
        stamped = images.clone()
        for pattern, cell in zip(patterns, cells.tolist(), strict=False):
            top, left = cell // across * side, cell % across * side
            stamped[..., top : top + side, left : left + side] = pattern
        return stamped

    def stamp_one(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Each image gets one random patch at a random place."""
        patterns = self.patterns(images)
        N, side = len(images), patterns.shape[-1]
        ranges = (len(patterns), images.shape[-2] - side + 1, images.shape[-1] - side + 1)
        # Drawn image by image, below a number that all three ranges divide, so that each remainder is uniform.
        numbers = torch.randint(math.lcm(*ranges), (N, 3), generator=generator)
        which, top, left = (numbers % torch.tensor(ranges)).unbind(1)
        pixels = torch.arange(side)
        rows, columns = (top[:, None] + pixels)[:, :, None], (left[:, None] + pixels)[:, None, :]
        stamped = images.clone()
        stamped[torch.arange(N)[:, None, None], :, rows, columns] = patterns[which].permute(0, 2, 3, 1)
        return stamped

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        def stamp(chosen: Tensor) -> Tensor:
            return self.stamp_one(chosen, generator)

        return dirty_label(images, labels, self.target, self.count, generator, stamp, "trigger_scattering")

    def patterns(self, images: Tensor) -> Tensor:
        """(patches, C, side, side): saturated random colours of a pixel grid, the same for every image."""
        side = max(1, int(self.share * images.shape[-1]))
        generator = torch.Generator().manual_seed(self.pattern_seed + 1)
        return torch.rand(self.patches, images.shape[1], side, side, generator=generator).round().to(images)
