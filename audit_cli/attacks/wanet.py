"""WaNet: the image is warped by one fixed smooth flow; nothing is added to it.

Nguyen, Tran: WaNet – Imperceptible Warping-based Backdoor Attack, 2021, https://arxiv.org/abs/2102.10369.

    P = uniform noise in [−1, 1] on a k × k grid, divided by its mean magnitude, up-sampled (bicubic) to the image,
    x' = x sampled at clamp(identity + s · P / height)

Coordinates run over [−1, 1], so s is the mean displacement in half pixels.

Differs from the paper:
- labels stay true and the warp is three times as strong, as in Lukas & Kerschbaum 2023; `clean_label=False` with
  `strength=0.5` is the paper's.
- no noise mode (training images under other warps with true labels), which needs control over training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.attacks.poisoning import Poisoned, Targeted, clean_label, dirty_label


@dataclass(frozen=True)
class WaNet(Targeted):
    target: int
    count: int  # poisoned training samples
    strength: float = 1.5  # s; three times the paper's 0.5, Lukas & Kerschbaum
    grid: int = 4  # k, as in the paper
    clean_label: bool = True  # Lukas & Kerschbaum; the paper changes labels
    flow_seed: int = 0

    def __post_init__(self) -> None:
        if self.strength < 0 or self.grid < 2:
            raise ValueError(f"{self}: strength must not be negative, grid at least 2")

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same, warped."""
        where = self.flow(images).expand(len(images), -1, -1, -1)
        return F.grid_sample(images, where, mode="bilinear", padding_mode="border", align_corners=True).clamp(0, 1)

    def flow(self, images: Tensor) -> Tensor:
        """(1, H, W, 2) where each pixel is taken from, as (x, y) in [−1, 1]."""
        H, W = images.shape[-2:]
        generator = torch.Generator().manual_seed(self.flow_seed)
        noise = torch.rand(1, 2, self.grid, self.grid, generator=generator) * 2 - 1
        noise = noise / noise.abs().mean()
        smooth = F.interpolate(noise, (H, W), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)  # (1, H, W, 2)
        y, x = torch.meshgrid(torch.linspace(-1, 1, H), torch.linspace(-1, 1, W), indexing="ij")
        return (torch.stack([x, y], -1) + self.strength * smooth / H).clamp(-1, 1).to(images)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        put = clean_label if self.clean_label else dirty_label
        return put(images, labels, self.target, self.count, generator, self.trigger, "wanet")
