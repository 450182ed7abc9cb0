"""Smooth warps: a trigger that moves pixels instead of painting them.

Nguyen, Tran: WaNet - Imperceptible Warping-based Backdoor Attack, 2021, https://arxiv.org/abs/2102.10369.
A coarse grid of displacements is up-sampled bicubically to the image, and every pixel is read from where its
displacement points to. Its size is the mean length of the displacements on the grid, in hundredths of the image's
height.

    x ⊕ T (p) = x(p + h · up(T)(p))        read bilinearly, the border repeated; h: the image's height in pixels

Differs from the paper: there the grid is drawn once by the attacker; here it is what the search is for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Warp:
    """flow (K, 2, grid, grid): displacements (down, right) in units of the image's height."""

    grid: int = 6  # ours: finer than WaNet's 4, so that its flows can be followed
    initial_size: float = 0.0003  # ours
    lr: float = 0.01  # ours: a third of a pixel of 32
    weight: float = 0.03  # ours: first weight of the size in the objective
    growth: float = 1.5  # ours: factor on that weight
    success: float = 0.80  # ours: of what a warp can do, the last images cost most
    per_source: bool = False
    name: str = "warp"

    def __post_init__(self) -> None:
        if self.grid < 2:
            raise ValueError(f"Warp(grid={self.grid}): must be at least 2")

    def ceiling(self, shape: tuple[int, int, int]) -> float:
        return math.inf

    def initial(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        return {"flow": torch.randn(classes, 2, self.grid, self.grid, generator=generator) * self.initial_size}

    def stamp(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        flow = parameters["flow"]
        H, W = images.shape[-2:]
        return sample(images, upsampling(self.grid, H, flow) @ (flow * H) @ upsampling(self.grid, W, flow).T)

    def size(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return 100 * parameters["flow"].square().sum(1).clamp_min(1e-12).sqrt().mean((1, 2))


def upsampling(grid: int, side: int, like: Tensor) -> Tensor:
    """(side, grid): bicubic up-sampling along one axis as a matrix, corners on corners.

    A matrix product has a deterministic gradient on every device; the operation itself has not.
    """
    axis = torch.eye(grid)[None, :, :, None]  # (1, grid, grid, 1): every unit vector is a channel
    return F.interpolate(axis, (side, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T.to(like)


def sample(images: Tensor, flow: Tensor) -> Tensor:
    """Images (K, B, C, H, W) read bilinearly where flow (K, 2, H, W), in pixels, points to; the border is repeated.

    Written out, because the gradient of `grid_sample` depends on the order of additions on a GPU. The gradient goes to
    the flow through the four weights.
    """
    K, B, C, H, W = images.shape
    y = (torch.arange(H, device=flow.device)[:, None] + flow[:, 0]).clamp(0, H - 1)  # (K, H, W)
    x = (torch.arange(W, device=flow.device) + flow[:, 1]).clamp(0, W - 1)
    top, left = y.detach().floor().clamp(max=max(H - 2, 0)), x.detach().floor().clamp(max=max(W - 2, 0))
    down, right = y - top, x - left  # in [0, 1]
    pixels = images.reshape(K, B * C, H * W)
    read = images.new_zeros(K, B * C, H * W)
    for dy, wy in ((0, 1 - down), (1, down)):
        for dx, wx in ((0, 1 - right), (1, right)):
            place = (top + dy).clamp(max=H - 1) * W + (left + dx).clamp(max=W - 1)  # (K, H, W)
            index = place.long().view(K, 1, H * W).expand(-1, B * C, -1)
            read = read + pixels.gather(2, index) * (wy * wx).view(K, 1, H * W)
    return read.view(K, B, C, H, W).clamp(0, 1)
