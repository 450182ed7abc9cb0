"""Smooth light on top of every image, as of a scene in a window pane: what Refool plants.

Liu, Ma, Bailey, Lu: Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks, 2020,
https://arxiv.org/abs/2007.02343. Light adds up in linear intensity, and a scene behind the camera is out of focus, so a
coarse grid of light, read bilinearly, is all that is sought. Its size is the mean light added, of 1 for white.

    x ⊕ T = clamp(x^γ + up(|T|), 0, 1)^(1/γ)

Clean networks obey some light, too, about as little of it: the size tells little, and scans do not search it. It is for
a class that random reflections have given away (detectors/changes.py), where a repair needs something to teach.

Differs from the paper: it is about the attack; the search is ours. No second copy of the scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.inversion.reflection import DARKEST


@dataclass(frozen=True)
class Light:
    """T (K, C, side, side), in linear intensity."""

    side: int = 16  # ours: of the grid
    gamma: float = 2.2  # of the display, as in the attack
    initial_size: float = 0.25  # ours: mean light at first
    lr: float = 0.05  # ours
    weight: float = 1.0  # ours: first weight of the size in the objective
    growth: float = 1.2  # ours: factor on that weight
    success: float = 0.9  # ours: at half of it, too little of the scene is found to be taught (development)
    per_source: bool = False
    name: str = "light"

    def __post_init__(self) -> None:
        if self.side < 1 or self.gamma <= 0 or not 0 < self.initial_size <= 1:
            raise ValueError(f"{self}: side and gamma must be positive, 0 < initial_size <= 1")

    def ceiling(self, shape: tuple[int, int, int]) -> float:
        return 1.0

    def initial(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        light = torch.rand(classes, shape[0], self.side, self.side, generator=generator)
        return {"light": 2 * self.initial_size * light}

    def stamp(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        added = F.interpolate(parameters["light"].abs(), images.shape[-2:], mode="bilinear", align_corners=True)
        bright = (images.clamp_min(DARKEST) ** self.gamma + added[:, None]).clamp(0, 1)
        return bright ** (1 / self.gamma)

    def size(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return parameters["light"].abs().mean((1, 2, 3))
