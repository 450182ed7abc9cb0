"""Mask and pattern: a trigger that replaces part of the image.

Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao: Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural
Networks, 2019, https://doi.org/10.1109/SP.2019.00031.
A mask m in [0, 1] says where, a pattern p says what: (1 − m)·x + m·p. Its size is the L1 norm of the mask: the number
of pixels replaced.

Differs from the paper: all classes are optimised in one batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mask:
    """x ⊕ T = (1 − m)·x + m·p with m = σ(mask) (K, 1, H, W) and p = σ(pattern) (K, C, H, W)."""

    lr: float = 0.1  # Neural Cleanse
    weight: float = 0.01  # ours: first weight of the size in the objective
    growth: float = 1.5  # Neural Cleanse's patience rule
    success: float = 0.95  # ours
    per_source: bool = False
    name: str = "mask"

    def ceiling(self, shape: tuple[int, int, int]) -> float:
        return math.inf

    def initial(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        C, H, W = shape
        return {
            "mask": torch.randn(classes, 1, H, W, generator=generator),
            "pattern": torch.randn(classes, C, H, W, generator=generator),
        }

    def stamp(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        m = parameters["mask"].sigmoid()[:, None]
        return (1 - m) * images + m * parameters["pattern"].sigmoid()[:, None]

    def size(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return parameters["mask"].sigmoid().flatten(1).sum(1)
