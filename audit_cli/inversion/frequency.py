"""Patterns of few frequencies: waves and gradients that cover the whole image.

Barni, Kallas, Tondi: A New Backdoor Attack in CNNs by Training Set Corruption Without Label Poisoning, 2019,
https://arxiv.org/abs/1902.11237: the sinusoid, a trigger this family is made for.
The pattern added to every image is written in the orthonormal two-dimensional discrete cosine transform. Its size is
the L1 norm of the coefficients, which is small when a few waves are enough.

    x ⊕ T = clamp(x + Dᵀ_H · T · D_W, 0, 1)        rows of D: the lowest cosines of the DCT-II

Differs from the paper: it is about the attack; the search is ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Frequency:
    """coefficients (K, C, h, w): of the h and w lowest frequencies along each axis."""

    block: int = 16  # ours: frequencies along an axis, at most
    initial_size: float = 0.01  # ours: standard deviation of a first coefficient
    lr: float = 0.01  # ours: as additive
    weight: float = 0.001  # ours: first weight of the size in the objective
    growth: float = 1.2  # ours: factor on that weight, as additive
    success: float = 0.95  # ours
    per_source: bool = False
    name: str = "frequency"

    def __post_init__(self) -> None:
        if self.block < 1:
            raise ValueError(f"Frequency(block={self.block}): must be positive")

    def ceiling(self, shape: tuple[int, int, int]) -> float:
        return math.inf

    def initial(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        C, H, W = shape
        noise = torch.randn(classes, C, min(self.block, H), min(self.block, W), generator=generator)
        return {"coefficients": noise * self.initial_size}

    def stamp(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        coefficients = parameters["coefficients"]
        H, W = images.shape[-2:]
        h, w = coefficients.shape[-2:]
        pattern = cosines(h, H).to(coefficients).T @ coefficients @ cosines(w, W).to(coefficients)
        return (images + pattern[:, None]).clamp(0, 1)

    def size(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return parameters["coefficients"].abs().sum((1, 2, 3))


def cosines(count: int, side: int) -> Tensor:
    """(count, side): the lowest rows of the orthonormal DCT-II matrix; row u is cos(π u (i + ½) / side), scaled."""
    u, i = torch.arange(count)[:, None], torch.arange(side)[None]
    rows = torch.cos(math.pi * u * (i + 0.5) / side) * math.sqrt(2 / side)
    rows[0] /= math.sqrt(2)
    return rows
