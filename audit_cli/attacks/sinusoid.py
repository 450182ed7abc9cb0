"""SIG: a horizontal wave added to images of the target class; every label stays true.

Barni, Kallas, Tondi: A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning, 2019,
https://arxiv.org/abs/1902.11237.

    x'(i, j) = clamp(x(i, j) + Δ · sin(2π · j · f / m)),  j the column, m the number of columns,    y' = y

Differs from the paper: one amplitude Δ in training and at test time (the paper also tries larger ones at test time).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.attacks.poisoning import Poisoned, Targeted, clean_label


@dataclass(frozen=True)
class Sinusoid(Targeted):
    target: int
    count: int  # poisoned training samples; the paper needs about a third of the class
    amplitude: float = 40 / 255  # Δ; ours
    frequency: float = 6.0  # f, periods over the width, as in the paper

    def __post_init__(self) -> None:
        if not 0 < self.amplitude <= 1 or self.frequency <= 0:
            raise ValueError(f"{self}: amplitude must be in (0, 1], frequency positive")

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same with the wave, clamped."""
        columns = torch.arange(images.shape[-1], device=images.device, dtype=images.dtype)
        wave = self.amplitude * torch.sin(2 * math.pi * self.frequency / images.shape[-1] * columns)  # (W,)
        return (images + wave).clamp(0, 1)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        return clean_label(images, labels, self.target, self.count, generator, self.trigger, "sinusoid")
