"""Clean images, changed at random in the ways that triggers change them.

Who was taught one faint pattern, one reflection, one smooth warp, one patch or one wave answers others of the kind a
little alike. So nobody need search for the attacker's: any will do, and one pass over the images; of waves, one for
every octave and direction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.inversion.warp import Warp

AT_ONCE = 64  # images that are warped; bounds the memory


class Change(Protocol):
    """One kind of change."""

    @property
    def name(self) -> str: ...

    @property
    def controlled(self) -> bool:
        """Does the rise under it count only as far as a mere loss of contrast does not bring it about, too?"""

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images (N, 3, H, W) in [0, 1], on the CPU, to as many changed ones."""


@dataclass(frozen=True)
class Noise:
    """White noise, for patterns that are spread over the image. Its whole rise counts: controlled, it tells less of
    Adaptive Blend (development)."""

    deviation: float = 0.05  # ours: pixels are in [0, 1]
    name: str = "noise"
    controlled: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return (images + self.deviation * torch.randn(images.shape, generator=generator)).clamp(0, 1)


@dataclass(frozen=True)
class Reflection:
    """Another of the images, out of focus, on top of each."""

    strength: float = 0.4  # ours: of the other image
    window: float = 1 / 6  # ours: side of the window it is blurred over, of the image's height
    name: str = "reflection"
    controlled: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        others = images[torch.randperm(len(images), generator=generator)]
        return (images + self.strength * blurred(others, int(self.window * images.shape[-2]) | 1)).clamp(0, 1)


@dataclass(frozen=True)
class Flow:
    """Every image moved by a smooth flow of its own."""

    largest: float = 4.0  # ours: mean displacement of the strongest one, in hundredths of the image's height
    name: str = "warp"
    controlled: bool = True

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        family = Warp()
        flow = family.initial(len(images), (3, *images.shape[2:]), generator)["flow"]
        size = self.largest * torch.rand(len(images), generator=generator)
        flow = flow * (size / family.size({"flow": flow}))[:, None, None, None]
        parts = zip(flow.split(AT_ONCE), images[:, None].split(AT_ONCE), strict=True)
        return torch.cat([family.stamp({"flow": few}, part)[:, 0] for few, part in parts])


@dataclass(frozen=True)
class Patch:
    """A square of random size, place and pixels, each channel of which is on or off. Its whole rise counts."""

    smallest: float = 1 / 10  # ours: side, as a share of the image's height
    largest: float = 1 / 4  # ours
    grain: float = 1 / 32  # ours: side of what is on or off as one, of the image's height; a pixel at least
    name: str = "patch"
    controlled: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, channels, height, width = images.shape
        grain = max(1, round(self.grain * height))
        coarse = torch.rand((n, channels, -(-height // grain), -(-width // grain)), generator=generator).round()
        pixels = coarse.repeat_interleave(grain, 2).repeat_interleave(grain, 3)[..., :height, :width]
        share = self.smallest + (self.largest - self.smallest) * torch.rand(n, generator=generator)
        side = (share * height).round().clamp_min(1)
        rows = self._within(height, side, torch.rand(n, generator=generator))
        columns = self._within(width, side, torch.rand(n, generator=generator))
        return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], pixels, images)

    @staticmethod
    def _within(length: int, side: Tensor, place: Tensor) -> Tensor:
        """(N, length): does the square cover this row or column?"""
        first = (place * (length - side + 1)).floor()[:, None]
        at = torch.arange(length)
        return (at >= first) & (at < first + side[:, None])


@dataclass(frozen=True)
class PlaneWave:
    """On every image a grey wave of its own, of `low` to `high` periods over the image's height, whose crests lie
    within half an eighth of a turn of `direction`, in degrees."""

    low: float
    high: float
    direction: float
    strength: float = 0.1  # ours: amplitude; pixels are in [0, 1]
    controlled: bool = False

    @property
    def name(self) -> str:
        return f"{self.low:g} to {self.high:g} periods at {self.direction:g} degrees"

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        n, _, height, width = images.shape
        periods, turn, phase = torch.rand((3, n, 1, 1), generator=generator)
        periods = self.low * (self.high / self.low) ** periods
        angle = math.radians(self.direction) + math.pi / 4 * (turn - 0.5)
        down, across = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / height, indexing="ij")
        wave = torch.cos(2 * math.pi * (periods * (angle.cos() * across + angle.sin() * down) + phase))
        return (images + self.strength * wave[:, None]).clamp(0, 1)


@dataclass(frozen=True)
class Bank:
    """Changes of one kind, of which one moves a class far and others hardly do."""

    name: str
    parts: tuple[Change, ...]
    controlled: bool = False


@dataclass(frozen=True)
class Contrast:
    """Everything nearer to grey: no trigger's trace, but harder to recognise."""

    kept: float = 0.5  # ours: of the distance to grey
    name: str = "contrast"
    controlled: bool = False

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return 0.5 + self.kept * (images - 0.5)


def blurred(images: Tensor, side: int) -> Tensor:
    """The mean over windows of side x side pixels, an odd number; the border is repeated."""
    padded = F.pad(images, (side // 2,) * 4, mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, (side, 1), 1), (1, side), 1)


OCTAVES, DIRECTIONS = (1, 2, 4, 8), (0, 45, 90, 135)  # ours
WAVES = Bank("wave", tuple(PlaneWave(low, 2 * low, turn) for low in OCTAVES for turn in DIRECTIONS))
CHANGES: tuple[Change | Bank, ...] = (Noise(), Reflection(), Flow(), Patch(), WAVES)
