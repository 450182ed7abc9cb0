"""A small patch that works wherever it lands.

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671: trigger-scattering, whose patches this family is made for. The search is an
expectation over translations, after Brown, Mané, Roy, Abadi, Gilmer: Adversarial Patch, 2017,
https://arxiv.org/abs/1712.09665.
A mask m and a pattern p of a few pixels' side replace part of each image, every image at a place of its own:
(1 − m)·x + m·p. Its size is the L1 norm of the mask: the number of pixels replaced.

Differs from the papers: the place is computed from the image's own pixels, so that a trigger stays a plain function of
the image. Over a search the patch sees as many places as there are images; on unseen images it meets new ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomPatch:
    """x ⊕ T = (1 − m)·x + m·p at the image's place, m = σ(mask) (K, 1, s, s) and p = σ(pattern) (K, C, s, s)."""

    share: float = 1 / 6  # ours: side of the patch, as a share of the image's shorter side
    least: int = 3  # ours: pixels of the patch's side, at least
    lr: float = 0.1  # as mask
    weight: float = 0.01  # as mask
    growth: float = 1.5  # as mask
    success: float = 0.95  # ours
    per_source: bool = False
    name: str = "random_patch"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or self.least < 1:
            raise ValueError(f"{self}: 0 < share <= 1, least at least 1")

    def side(self, height: int, width: int) -> int:
        """Pixels of the patch's side on images of that size."""
        return min(max(self.least, round(self.share * min(height, width))), height, width)

    def ceiling(self, shape: tuple[int, int, int]) -> float:
        """The whole patch: few classes of a clean model can be reached at all, and those that cannot need more."""
        return float(self.side(*shape[1:]) ** 2)

    def initial(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        C, s = shape[0], self.side(*shape[1:])
        return {
            "mask": torch.randn(classes, 1, s, s, generator=generator),
            "pattern": torch.randn(classes, C, s, s, generator=generator),
        }

    def stamp(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        m, p = parameters["mask"].sigmoid(), parameters["pattern"].sigmoid()  # (K, 1, s, s), (K, C, s, s)
        s, (H, W) = m.shape[-1], images.shape[-2:]
        top, left = places(images, H - s + 1, W - s + 1)  # (K, B) each
        rows, columns = shift(top, s, H).to(m), shift(left, s, W).to(m)  # (K, B, s, H), (K, B, s, W)
        painted = torch.einsum("kbih,kcij,kbjw->kbchw", rows, m * p, columns)
        covered = torch.einsum("kbih,kcij,kbjw->kbchw", rows, m, columns)
        return (1 - covered) * images + painted

    def size(self, parameters: Mapping[str, Tensor]) -> Tensor:
        return parameters["mask"].sigmoid().flatten(1).sum(1)


def places(images: Tensor, down: int, right: int) -> tuple[Tensor, Tensor]:
    """Where each image's patch goes: rows in [0, down) and columns in [0, right), (K, B) int64 each.

    A multiplicative hash of the sum of the image's 8-bit values: whole numbers, the same on every device.
    """
    total = (images.detach() * 255).round().long().sum((2, 3, 4))
    mixed = (total * 2_654_435_761) & 0xFFFF_FFFF  # Knuth's multiplier, modulo 2^32
    return (mixed >> 16) * down >> 16, (mixed & 0xFFFF) * right >> 16


def shift(start: Tensor, side: int, length: int) -> Tensor:
    """(K, B) first indices -> (K, B, side, length) bool matrices that put `side` values there on a longer axis."""
    where = start[..., None] + torch.arange(side, device=start.device)  # (K, B, side)
    return where[..., None] == torch.arange(length, device=start.device)
