"""From decoded images to a tensor: the geometry of torchvision's and Hugging Face's image preprocessing.

Only geometry happens here, with Pillow on 8-bit pixels, as the model's own pipeline does it; normalisation is a layer
of the classifier, so that a trigger lives in pixel space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from audit_cli.data.raw import Pixels, RawImages
from audit_cli.errors import DataError, UsageError

Interpolation = Literal["bilinear", "bicubic", "nearest", "lanczos"]
Channels = tuple[float, float, float]

RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
    "lanczos": Image.Resampling.LANCZOS,
}
MAX_SIDE = 2048
MAX_PIXELS = 50_000_000  # of one image after resizing: a 1 x 10^7 image is small until its shorter side becomes 224
MAX_BYTES = 16 * 2**30  # of the whole float tensor


@dataclass(frozen=True)
class Preprocessing:
    """How the model wants its images; the default takes them as they are.

    size: the (H, W) that comes out; None for whatever does. resize: the shorter side's new length, or both (H, W), or
    None. crop: cut the centre of `size` out afterwards. crop_at: where an odd margin puts the centre, "round" (half to
    even, torchvision) or "floor" (Hugging Face). mean, std: normalisation in units of [0, 1] pixels, None when unknown.
    source: where all this comes from, for the record. Raises UsageError on impossible values.
    """

    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    crop: bool = False
    interpolation: Interpolation = "bilinear"
    mean: Channels | None = None
    std: Channels | None = None
    source: str = "none"
    crop_at: Literal["round", "floor"] = "round"

    def __post_init__(self) -> None:
        resize = self.resize if isinstance(self.resize, tuple) else () if self.resize is None else (self.resize,)
        sides = [*(self.size or ()), *resize]
        if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in sides):
            raise UsageError(
                f"{self.source}: sizes {self.size}, {self.resize}; expected whole numbers in 1..{MAX_SIDE}"
            )
        if self.crop and self.size is None:
            raise UsageError(f"{self.source}: a centre crop needs a size")
        if self.interpolation not in RESAMPLING:
            raise UsageError(f"{self.source}: interpolation {self.interpolation}; expected {', '.join(RESAMPLING)}")
        if (self.mean is None) != (self.std is None):
            raise UsageError(f"{self.source}: mean and std come together; give both")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or not all(math.isfinite(value) for value in values)):
                raise UsageError(f"{self.source}: {name} {values}; expected three finite numbers")
        if self.std is not None and min(self.std) <= 0:
            raise UsageError(f"{self.source}: std {self.std}; expected positive numbers")

    @classmethod
    def for_size(cls, size: tuple[int, int], source: str = "size") -> Preprocessing:
        """Resize the shorter side to a square `size` and crop the centre; resize to a non-square one exactly."""
        square = size[0] == size[1]
        return cls(size=size, resize=size[0] if square else size, crop=square, source=source)

    def geometry(self, raw: RawImages) -> Tensor:
        """(N, 3, H, W) float32 in [0, 1]. An image that already has the final size is taken to be prepared.

        Raises DataError when the images do not come out in one size, or too large.
        """
        images = [self._fit(image) for image in raw.images]
        shapes = sorted({image.shape[:2] for image in images})
        if len(shapes) > 1:
            some = ", ".join(f"{h}x{w}" for h, w in shapes[:4])
            raise DataError(f"{raw.source}: images of {len(shapes)} sizes (height x width {some} …); pass --size")
        if 4 * len(images) * images[0].size > MAX_BYTES:
            raise DataError(
                f"{raw.source}: {len(images)} images of {shapes[0]} are too many; limit the images per class"
            )
        stacked = torch.from_numpy(np.stack(images))  # (N, H, W, 3)
        return stacked.permute(0, 3, 1, 2).float().div(255).contiguous()

    def _fit(self, image: Pixels) -> Pixels:
        height, width = image.shape[:2]
        if (height, width) == self.size:
            return image
        if self.resize is not None:
            height, width = self._resized(height, width)
            if height * width > MAX_PIXELS:
                raise DataError(f"an image of {image.shape[:2]} would become {height}x{width}; crop or remove it")
            resampling = RESAMPLING[self.interpolation]
            image = np.asarray(Image.fromarray(image).resize((width, height), resampling))
        if self.crop and self.size is not None:
            down, right = self.size
            if height < down or width < right:
                raise DataError(f"an image of {height}x{width} is smaller than the crop {down}x{right}; pass --size")
            halve = round if self.crop_at == "round" else math.floor
            top, left = halve((height - down) / 2), halve((width - right) / 2)
            image = image[top : top + down, left : left + right]
        if self.size is not None and image.shape[:2] != self.size:
            raise DataError(f"an image of {height}x{width} does not fit the model's {self.size}; pass --size to resize")
        return image

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Size after resizing; the longer side is truncated, as in torchvision and Hugging Face."""
        if isinstance(self.resize, tuple):
            return self.resize
        side = self.resize or min(height, width)
        if height <= width:
            return side, int(side * width / height)
        return int(side * height / width), side
