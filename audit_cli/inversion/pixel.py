"""Sparse additive triggers with a positive and a negative part.

Tao, Shen, Liu, An, Xu, Ma, Li, Zhang: Better Trigger Inversion Optimization in Backdoor Scanning, 2022,
https://doi.org/10.1109/CVPR52688.2022.01301.
What is added to a pixel and what is taken from it are two variables through tanh, both free to go to zero, so that one
norm says how many pixels are changed and by how much:

    x ⊕ T = clamp(x + p − n, 0, 1),   p, n = (1 + tanh) / 2 in [0, 1]        size = Σ_pixels max_channels (p + n)

Differs from the paper: all classes are optimised in one batch, and the parts are not pruned along the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pixel:
    """positive, negative (K, C, H, W), before tanh."""

    lr: float = 0.1  # ours: as mask
    weight: float = 0.001  # ours: first weight of the size in the objective
    growth: float = 1.5  # as mask
    success: float = 0.95  # ours
    per_source: bool = False
    name: str = "pixel"

    def ceiling(self, shape: tuple[int, int, int]) -> float:
        return math.inf

    def initial(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        return {part: torch.randn(classes, *shape, generator=generator) for part in ("positive", "negative")}

    def stamp(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        p, n = self._parts(parameters)
        return (images + (p - n)[:, None]).clamp(0, 1)

    def size(self, parameters: Mapping[str, Tensor]) -> Tensor:
        p, n = self._parts(parameters)
        return (p + n).amax(1).sum((1, 2))

    def _parts(self, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        return (1 + parameters["positive"].tanh()) / 2, (1 + parameters["negative"].tanh()) / 2
