"""Plane waves over the whole image, found by trying them all.

Barni, Kallas, Tondi: A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning, 2019,
https://arxiv.org/abs/1902.11237: the sinusoid, a trigger this family is made for.
A grey wave of u periods down and v periods across the image, phase φ, is added to it; its size is the amplitude, in
grey levels of 255.

    x ⊕ T (i, j) = clamp(x(i, j) + a/255 · cos(2π (u i/H + v j/W) + φ), 0, 1)

A gradient does not lead from one frequency to another, and among all additive patterns a wave is none of the small
ones; but there are only some hundred frequencies, so `listing` tries each.

Differs from the paper: it is about the attack; the search is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Wave:
    """wave (K, 3): periods down, periods across, phase in radians; amplitude (K,): in grey levels of 255."""

    axis: int = 8  # ours: most periods of waves along one axis; the paper has 6
    oblique: int = 4  # ours: most periods along either axis of waves along both
    phases: int = 4  # ours
    initial_size: float = 40.0  # ours: amplitude at which the waves are compared first
    smallest: float = 4.0  # ours
    largest: float = 64.0  # ours: half of the grey levels from crest to trough
    success: float = 0.50  # ours: of what a wave can do, the last images cost most
    per_source: bool = False
    # Should somebody descend on it after all:
    lr: float = 0.1
    weight: float = 0.01
    growth: float = 1.2
    name: str = "wave"

    def __post_init__(self) -> None:
        if min(self.axis, self.phases) < 1 or self.oblique < 0:
            raise ValueError(f"{self}: axis and phases must be positive, oblique not negative")
        if not 0 < self.smallest < self.initial_size <= self.largest:
            raise ValueError(f"{self}: 0 < smallest < initial_size <= largest")

    def ceiling(self, shape: tuple[int, int, int]) -> float:
        return self.largest

    def frequencies(self) -> list[tuple[int, int]]:
        """(u, v), one of every pair of opposite directions."""
        a, o = self.axis, self.oblique
        along = [(0, k) for k in range(1, a + 1)] + [(k, 0) for k in range(1, a + 1)]
        return along + [(u, v) for u in range(1, o + 1) for v in range(-o, o + 1) if v]

    def listed(self, images: Tensor) -> dict[str, Tensor]:
        """Every wave, (L, 3), at the first amplitude; the images are not needed."""
        phases = [2 * math.pi * k / self.phases for k in range(self.phases)]
        waves = torch.tensor([(u, v, phase) for u, v in self.frequencies() for phase in phases])
        return self.scaled({"wave": waves}, torch.full((len(waves),), self.initial_size))

    def scaled(self, parameters: Mapping[str, Tensor], sizes: Tensor) -> dict[str, Tensor]:
        """The same waves at amplitudes `sizes` (K,)."""
        return {**parameters, "amplitude": sizes}

    def initial(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Random ones of the list, up to the first amplitude."""
        waves = self.listed(torch.empty(0))["wave"]
        chosen = waves[torch.randint(len(waves), (classes,), generator=generator)]
        return {"wave": chosen, "amplitude": self.initial_size * torch.rand(classes, generator=generator)}

    def stamp(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        u, v, phase = parameters["wave"].unbind(1)  # (K,) each
        H, W = images.shape[-2:]
        down = u[:, None] * torch.arange(H, device=images.device) / H  # (K, H)
        across = v[:, None] * torch.arange(W, device=images.device) / W  # (K, W)
        angle = 2 * math.pi * (down[:, :, None] + across[:, None, :]) + phase[:, None, None]
        pattern = parameters["amplitude"][:, None, None] / 255 * angle.cos()  # (K, H, W)
        return (images + pattern[:, None, None]).clamp(0, 1)

    def size(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return parameters["amplitude"].abs()
