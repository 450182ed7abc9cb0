"""Clean images, changed at random in the ways that triggers change them.

Who was taught one faint pattern, one reflection or one smooth warp answers others of the kind a little alike. So nobody
need search for the attacker's: any will do, and one pass over the images.
"""

from __future__ import annotations

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


CHANGES: tuple[Change, ...] = (Noise(), Reflection(), Flow())
