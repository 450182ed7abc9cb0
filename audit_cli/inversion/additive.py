"""Full-image additive triggers, as in calibrated trigger inversion.

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671 (Algorithm 4).
One pattern is added to every image: x + T, clipped to [0, 1]. Its size is the L2 norm of T over pixels and channels.

Differs from the paper: the size is measured, so that it can be made small; the paper's search leaves it free.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Additive:
    """x ⊕ T = clamp(x + T, 0, 1), T (K, C, H, W)."""

    lr: float = 0.01  # the authors' release
    initial_size: float = 0.01  # T ~ U(0, 0.01), the authors' release
    weight: float = 0.01  # ours: first weight of the size in the objective
    growth: float = 1.2  # ours: factor on that weight
    success: float = 0.95  # ours
    per_source: bool = False
    name: str = "additive"

    def ceiling(self, shape: tuple[int, int, int]) -> float:
        return math.inf

    def initial(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        return {"pattern": torch.rand(classes, *shape, generator=generator) * self.initial_size}

    def stamp(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        return (images + parameters["pattern"][:, None]).clamp(0, 1)

    def size(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return parameters["pattern"].square().sum((1, 2, 3)).clamp_min(1e-12).sqrt()
