"""Hugging Face preprocessor_config.json, or that section of processor_config.json -> Preprocessing.

The file is hostile: it is never given to `from_pretrained`; only the processors listed here, whose arithmetic is known,
are accepted, and every number is checked. What would alter pixels in a way not reproduced here is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, cast

from audit_cli.data.preprocess import MAX_SIDE, Channels, Interpolation, Preprocessing
from audit_cli.errors import UsageError
from audit_cli.report.sanitise import clean

REMEDY = "pass --size, --mean and --std"

# Processor -> (what a bare number means as size, whether it crops by default).
Bare = Literal["both", "shorter"]
PROCESSORS: dict[str, tuple[Bare, bool]] = {
    "ViT": ("both", False),
    "DeiT": ("both", True),
    "Beit": ("both", False),
    "Siglip": ("both", False),
    "CLIP": ("shorter", True),
    "Bit": ("shorter", True),
    "MobileNetV1": ("shorter", True),
    "MobileNetV2": ("shorter", True),
    "ConvNext": ("shorter", False),
}
SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")
RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
KNOWN_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
OTHER_STEPS = {"rescale_offset", "include_top", "use_square_size"}


class _Strange(Exception):
    """What is not reproduced, told without the file and the remedy."""


def from_config(config: Mapping[str, object], file: str = "preprocessor_config.json") -> Preprocessing:
    """The preprocessing a Hugging Face image processor would do. Raises UsageError naming the key and the remedy.

    file: where `config` was read, for the record and for the error.
    """
    try:
        return _read(config, file)
    except _Strange as problem:
        raise UsageError(f"{file}: {problem}; {REMEDY}") from problem


def _read(config: Mapping[str, object], file: str) -> Preprocessing:
    kind = _kind(config)
    bare, crops = PROCESSORS[kind]
    for key, value in config.items():
        if (key in OTHER_STEPS or key.startswith("do_")) and key not in KNOWN_STEPS and value not in (None, False):
            raise _Strange(f"{key} is on, a step not reproduced here")
    if not _flag(config, "do_rescale", True) or not _is(config.get("rescale_factor", 1 / 255), 1 / 255):
        raise _Strange("pixels are not rescaled by 1/255")
    mean: Channels = (0.0, 0.0, 0.0)
    std: Channels = (1.0, 1.0, 1.0)
    if _flag(config, "do_normalize", True):
        mean, std = _channels(config, "image_mean"), _channels(config, "image_std")
    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: Interpolation = "bilinear"
    crop = _flag(config, "do_center_crop", crops)
    if _flag(config, "do_resize", True):
        resize = _size(config.get("size"), "size", bare)
        interpolation = _interpolation(config.get("resample"))
        if kind == "ConvNext":
            size, resize = _convnext(resize, config.get("crop_pct"))
            if crop:
                raise _Strange("do_center_crop is on for a ConvNext processor, which crops by crop_pct")
        elif isinstance(resize, tuple):
            size = resize
    if crop:
        cut = _size(config.get("crop_size"), "crop_size", "both")
        size = cut if isinstance(cut, tuple) else (cut, cut)
        least = resize if isinstance(resize, tuple) else (resize or MAX_SIDE,) * 2
        if size[0] > least[0] or size[1] > least[1]:
            raise _Strange(f"crop_size {size} exceeds size {resize}")
    if size is None and resize is not None:
        raise _Strange("size gives the shorter side and nothing is cropped: images of any shape would come out")
    cropped = crop or (kind == "ConvNext" and isinstance(resize, int))
    return Preprocessing(size, resize, cropped, interpolation, mean, std, file, "floor")


def _kind(config: Mapping[str, object]) -> str:
    name = config.get("image_processor_type") or config.get("feature_extractor_type")
    kind = str(name)
    for suffix in SUFFIXES:
        kind = kind.removesuffix(suffix)
    if kind not in PROCESSORS:
        raise _Strange(f"image_processor_type {clean(str(name), 60)} is not one of {', '.join(PROCESSORS)}")
    return kind


def _convnext(resize: int | tuple[int, int], crop_pct: object) -> tuple[tuple[int, int], int | tuple[int, int]]:
    """ConvNext's own rule: below 384 the shorter side becomes side / crop_pct and the centre is cut out; else warp."""
    if isinstance(resize, tuple):
        raise _Strange("size of a ConvNext processor is not {'shortest_edge': …}")
    if resize >= 384:
        return (resize, resize), (resize, resize)
    share = 224 / 256 if crop_pct is None else _number(crop_pct, "crop_pct")
    if not 0.1 <= share <= 1:
        raise _Strange(f"crop_pct {share}; expected a share in 0.1..1")
    return (resize, resize), int(resize / share)


def _size(value: object, key: str, bare: Bare) -> int | tuple[int, int]:
    """{"shortest_edge": s}, {"height": h, "width": w}, or a bare number."""
    if isinstance(value, Mapping):
        value = {name: side for name, side in value.items() if side is not None}
        if set(value) == {"shortest_edge"}:
            return _side(value["shortest_edge"], key)
        if set(value) == {"height", "width"}:
            return _side(value["height"], key), _side(value["width"], key)
        raise _Strange(f"{key} {clean(str(value), 80)}; expected height and width, or shortest_edge")
    side = _side(value, key)
    return side if bare == "shorter" else (side, side)


def _side(value: object, key: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_SIDE:
        raise _Strange(f"{key} {clean(str(value), 40)}; expected a whole number in 1..{MAX_SIDE}")
    return value


def _channels(config: Mapping[str, object], key: str) -> Channels:
    values = config.get(key)
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise _Strange(f"{key} {clean(str(values), 80)}; expected three numbers")
    numbers = tuple(_number(value, key) for value in values)
    if key == "image_std" and min(numbers) <= 0:
        raise _Strange(f"image_std {numbers}; expected positive numbers")
    return cast(Channels, numbers)


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:  # NaN is not either
        raise _Strange(f"{key} {clean(str(value), 40)}; expected a finite number")
    return float(value)


def _is(value: object, wanted: float) -> bool:
    return math.isclose(_number(value, "rescale_factor"), wanted, rel_tol=1e-4)


def _flag(config: Mapping[str, object], key: str, default: bool) -> bool:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise _Strange(f"{key} {clean(str(value), 40)}; expected true or false")
    return value


def _interpolation(value: object) -> Interpolation:
    if type(value) is not int or value not in RESAMPLE:
        raise _Strange(f"resample {clean(str(value), 40)}; expected one of {RESAMPLE}")
    return RESAMPLE[value]
