"""Reflections: a scene in a window pane before the image, found by trying photographs.

Liu, Ma, Bailey, Lu: Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks, 2020,
https://arxiv.org/abs/2007.02343. A pane reflects at both of its surfaces, so the scene R appears twice, a few pixels
apart; light adds up in linear intensity. Its size is the strength α of the reflected light.

    x ⊕ T = clamp(x^γ + α · (R^γ + shift(R^γ)) / 2)^(1/γ)

The attacker's scene is not known, but a network that has learnt one answers to others that are bright in the same
places, and among some two hundred photographs there are such. The trusted images serve as scenes, so `listing` has
something to try without further data.

Not searched by default: that it pays has not been shown.

Differs from the paper: it is about the attack; the search is ours. One shift, both copies alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

DARKEST = 1e-4  # of a pixel: a power below 1 has no gradient at 0


@dataclass(frozen=True)
class Reflection:
    """light (K, C, H, W): what the pane adds, in linear intensity; strength (K,): α."""

    scenes: int = 192  # ours: photographs tried
    gamma: float = 2.2  # of the display, as in the attack
    shift: float = 5 / 32  # ours: between the two copies, down and right, as a share of the sides
    initial_size: float = 1.0  # ours: strength at which the scenes are compared first
    smallest: float = 0.05  # ours
    largest: float = 2.0  # ours: twice what any photograph reflects
    success: float = 0.50  # ours: as waves
    per_source: bool = False
    # Should somebody descend on it after all:
    lr: float = 0.05
    weight: float = 0.01
    growth: float = 1.2
    name: str = "reflection"

    def __post_init__(self) -> None:
        if self.scenes < 1 or self.gamma <= 0 or not 0 <= self.shift < 1:
            raise ValueError(f"{self}: scenes and gamma must be positive, 0 <= shift < 1")
        if not 0 < self.smallest < self.initial_size <= self.largest:
            raise ValueError(f"{self}: 0 < smallest < initial_size <= largest")

    def ceiling(self, shape: tuple[int, int, int]) -> float:
        return self.largest

    def ghost(self, scenes: Tensor) -> Tensor:
        """(L, C, H, W) in [0, 1] -> the light of both copies; what the shift leaves open repeats the border."""
        H, W = scenes.shape[-2:]
        light = scenes.clamp(0, 1) ** self.gamma
        down, right = round(self.shift * H), round(self.shift * W)
        return (light + F.pad(light, (right, 0, down, 0), mode="replicate")[..., :H, :W]) / 2

    def listed(self, images: Tensor) -> dict[str, Tensor]:
        """The first of the images (N, C, H, W) as scenes, at the first strength."""
        light = self.ghost(images[: self.scenes])
        return self.scaled({"light": light}, torch.full((len(light),), self.initial_size, device=light.device))

    def scaled(self, parameters: Mapping[str, Tensor], sizes: Tensor) -> dict[str, Tensor]:
        """The same scenes at strengths `sizes` (K,)."""
        return {**parameters, "strength": sizes}

    def initial(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Random light, up to the first strength."""
        return {
            "light": torch.rand(classes, *shape, generator=generator) / 2,
            "strength": self.initial_size * torch.rand(classes, generator=generator),
        }

    def stamp(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        added = (parameters["strength"][:, None, None, None] * parameters["light"]).clamp_min(0)[:, None]
        bright = (images.clamp_min(DARKEST) ** self.gamma + added).clamp_max(1)
        return (bright ** (1 / self.gamma)).clamp(0, 1)

    def size(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return parameters["strength"].abs()
