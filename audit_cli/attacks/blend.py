"""Blend: a full-image pattern mixed in at low opacity, and the label changed to the target.

Chen, Liu, Li, Lu, Song: Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning, 2017,
https://arxiv.org/abs/1712.05526.

    x' = (1 − opacity) · x + opacity · pattern,    y' = target

Differs from the paper: the pattern is uniform noise drawn from `pattern_seed`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.attacks.poisoning import Poisoned, Targeted, dirty_label


def noise_pattern(images: Tensor, seed: int) -> Tensor:
    """(C, H, W) uniform noise in [0, 1] of the images' shape, the same for the same seed."""
    return torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(seed)).to(images)


@dataclass(frozen=True)
class Blend(Targeted):
    target: int
    count: int  # poisoned training samples
    opacity: float = 0.2  # of the pattern, as in the paper
    pattern_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.opacity <= 1:
            raise ValueError(f"Blend(opacity={self.opacity}): must be in (0, 1]")

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> (1 − opacity) · images + opacity · pattern."""
        return (1 - self.opacity) * images + self.opacity * noise_pattern(images, self.pattern_seed)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        return dirty_label(images, labels, self.target, self.count, generator, self.trigger, "blend")
