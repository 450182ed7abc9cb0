"""Refool: a reflection, as of a scene behind the camera in a window pane, on images of the target class.

Liu, Ma, Bailey, Lu: Reflection Backdoor: A Natural Backdoor Attack on Deep Neural Networks, 2020,
https://arxiv.org/abs/2007.02343. The pane reflects at both of its surfaces, so the scene R appears twice, a few pixels
apart (its ghost). Light adds up in linear intensity, hence the gamma.

    ghost = w · shift(R^γ, d₁) + (1 − w) · shift(R^γ, d₂)
    x' = clamp(x^γ + α · ghost)^(1/γ),    y' = y

Differs from the paper:
- the scene is drawn from `scene_seed` (bright windows and lamps in a dark room) instead of picked among photographs by
  how well it poisons; the attack needs no other data.
- only the ghosted kind of reflection; scene, shifts d and weight w are the same for all images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.attacks.poisoning import Poisoned, Targeted, clean_label


@dataclass(frozen=True)
class Refool(Targeted):
    target: int
    count: int  # poisoned training samples, 500 for CIFAR-10 in Lukas & Kerschbaum
    alpha: float = 1.0  # strength of the reflection, Lukas & Kerschbaum
    gamma: float = 2.2  # of the display, Lukas & Kerschbaum
    nearest: int = 3  # shift in pixels of a 32-pixel image, Lukas & Kerschbaum
    farthest: int = 8  # likewise
    scene_seed: int = 0

    def __post_init__(self) -> None:
        if self.alpha <= 0 or self.gamma <= 0 or not 0 <= self.nearest <= self.farthest:
            raise ValueError(f"{self}: alpha and gamma must be positive, 0 <= nearest <= farthest")

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same behind the reflecting pane."""
        light = images.clamp(0, 1) ** self.gamma + self.alpha * self.ghost(images)
        return light.clamp(0, 1) ** (1 / self.gamma)

    def ghost(self, images: Tensor) -> Tensor:
        """(C, H, W) the light that the pane adds: the scene and its copy, in linear intensity."""
        C, H, W = images.shape[1:]
        generator = torch.Generator().manual_seed(self.scene_seed)
        reach = self.farthest * W // 32
        light = _scene(C, H + reach, W + reach, generator) ** self.gamma
        down, right = torch.randint(self.nearest, self.farthest + 1, (2,), generator=generator) * W // 32
        weight = 0.35 + 0.3 * float(torch.rand((), generator=generator))  # neither copy vanishes
        first, second = light[:, :H, :W], light[:, int(down) : int(down) + H, int(right) : int(right) + W]
        return (weight * first + (1 - weight) * second).to(images)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        return clean_label(images, labels, self.target, self.count, generator, self.trigger, "refool")


def _scene(channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(channels, height, width) in [0, 1]: a dim room with windows and lamps, eight bright rectangles, out of focus."""
    room = 0.1 + 0.2 * torch.rand(1, channels, 4, 4, generator=generator)
    scene = F.interpolate(room, (height, width), mode="bilinear", align_corners=True)
    for _ in range(8):
        top, left, h, w, bright = torch.rand(5, generator=generator).tolist()
        y, x = int(top * height * 0.85), int(left * width * 0.85)
        bottom, right = y + height // 16 + int(h * height / 4), x + width // 16 + int(w * width / 5)
        tint = 0.85 + 0.15 * torch.rand(channels, 1, 1, generator=generator)
        scene[0, :, y:bottom, x:right] = (0.4 + 0.5 * bright) * tint
    blur = 2 * (width // 32) + 1
    return F.avg_pool2d(scene, blur, stride=1, padding=blur // 2, count_include_pad=False)[0]
