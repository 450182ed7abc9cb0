"""NumPy archives (.npz) of images and labels: never unpickled, nothing allocated before header and archive agree."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from audit_cli.data.raw import Labels, Limits, Pixels, RawImages, check_count, pick, shown
from audit_cli.errors import DataError

NAMES = ("classes", "class_names")


def read_npz(
    path: Path, *, split: str, per_class: int | None, seed: int, limits: Limits, unlabelled: bool = False
) -> RawImages:
    """Read `images`/`labels`, `x`/`y`, `x_<split>`/`y_<split>` or `<split>_images`/`<split>_labels`, and `classes`.

    Images: uint8, or floats in [0, 1], or whole numbers in 0..255; (N, H, W, 3), (N, 3, H, W) or gray (N, H, W).
    unlabelled: the labels may be missing.
    Raises DataError naming the array and what was expected of it.
    """
    name = shown(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, name)
            x, y = _pair(members, split, name, unlabelled)
            raw = _array(archive, members[x], limits, name)
            labels = np.zeros(len(raw) if raw.ndim else 0, dtype=np.int64)
            if y is not None:
                labels = as_labels(_array(archive, members[y], limits, name), f"{name}: `{y}`", limits)
            key = next((key for key in NAMES if key in members and y is not None), None)
            classes: tuple[str, ...] = ()
            if key is not None:
                classes = _class_names(_array(archive, members[key], limits, name), f"{name}: `{key}`", limits)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib and lzma raise many kinds on hostile bytes
        raise DataError(
            f"{name}: not a readable .npz archive ({shown(str(error))}); write it with numpy.savez"
        ) from error
    if raw.ndim == 0 or len(raw) != len(labels):
        raise DataError(f"{name}: `{x}` has shape {raw.shape} but `{y}` holds {len(labels)} labels; expected one each")
    chosen = pick(labels, per_class, seed)
    check_count(len(chosen), limits, name)
    labels = labels[chosen]
    if classes and len(labels) and labels.max() >= len(classes):
        raise DataError(f"{name}: label {labels.max()} but only {len(classes)} class names; lengthen `{key}`")
    images, note = as_images(raw[chosen], f"{name}: `{x}`")
    return RawImages.of(tuple(images), labels, classes, name, (note,) if note else (), labelled=y is not None)


def as_labels(values: NDArray[np.generic], name: str, limits: Limits) -> Labels:
    """Class indices (N,) or (N, 1) -> (N,) int64; a large one would name a class for every number below it."""
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(f"{name} is {values.dtype} of shape {values.shape}; expected whole numbers of shape (N,)")
    if len(values) and (int(values.min()) < 0 or int(values.max()) >= limits.classes):
        expected = f"class indices from 0 to {limits.classes - 1}"
        raise DataError(f"{name} holds values in {values.min()}..{values.max()}; expected {expected}")
    return values.astype(np.int64)


def as_images(values: NDArray[np.generic], name: str) -> tuple[Pixels, str]:
    """Images of any accepted layout and range -> uint8 (N, H, W, 3), and a note on what was converted."""
    pixels, note = _as_bytes(values, name)
    if pixels.ndim == 3:
        return np.repeat(pixels[..., None], 3, axis=3), note
    if pixels.ndim != 4:
        raise DataError(f"{name} has shape {pixels.shape}; expected (N, H, W, 3), (N, 3, H, W) or (N, H, W)")
    channels_first, channels_last = pixels.shape[1] in (1, 3), pixels.shape[3] in (1, 3)
    if channels_first == channels_last:
        problem = "may be read both ways" if channels_first else "has no axis of 3 channels"
        raise DataError(f"{name} of shape {pixels.shape} {problem}; expected (N, H, W, 3) or (N, 3, H, W)")
    if channels_first:
        pixels = pixels.transpose(0, 2, 3, 1)
    if 0 in pixels.shape[1:]:
        raise DataError(f"{name} has shape {values.shape}: images without pixels")
    return np.broadcast_to(pixels, (*pixels.shape[:3], 3)), note


def _as_bytes(values: NDArray[np.generic], name: str) -> tuple[Pixels, str]:
    """Values of an accepted range -> uint8 0..255."""
    if values.dtype == np.uint8 or values.size == 0:
        return values.astype(np.uint8, copy=False), ""
    if values.dtype.kind not in "iuf":
        raise DataError(f"{name} is {values.dtype}; expected uint8 or float pixels")
    low, high = float(values.min()), float(values.max())  # NaN when any value is
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        return np.rint(values * 255).astype(np.uint8), "float images in [0, 1] were rounded to 8 bits"
    if low >= 0 and high <= 255 and bool(np.all(values == np.rint(values))):
        return values.astype(np.uint8), ""
    whole = "" if values.dtype.kind in "iu" or not math.isfinite(low) or low < 0 or high > 255 else ", not whole"
    raise DataError(
        f"{name} holds values in {low:g}..{high:g}{whole}; expected uint8, floats in [0, 1] or whole numbers in 0..255 "
        "(save images before normalisation)"
    )


def _members(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """Array name -> archive member."""
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise DataError(f"{name}: an array name occurs twice; write the archive anew with numpy.savez")
    return members


def _pair(members: Mapping[str, zipfile.ZipInfo], split: str, name: str, unlabelled: bool) -> tuple[str, str | None]:
    """Names of the image and the label array, None where there is none and need not be."""
    accepted = [("images", "labels"), ("x", "y"), (f"x_{split}", f"y_{split}"), (f"{split}_images", f"{split}_labels")]
    found = [(x, y) for x, y in accepted if x in members and y in members]
    alone = [x for x, y in accepted if x in members and y not in members]
    if unlabelled and not found and len(alone) == 1:
        return alone[0], None
    if len(found) != 1:
        have = ", ".join(f"`{shown(key)}`" for key in sorted(members)[:12]) or "nothing"
        want = " or ".join(f"`{x}` and `{y}`" for x, y in found or accepted)
        problem = "it is unclear which to take of" if found else "expected"
        raise DataError(f"{name}: holds {have}; {problem} {want} (--split chooses the split)")
    return found[0]


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limits: Limits, name: str) -> NDArray[np.generic]:
    """One array: the header is judged first, then exactly the bytes it announces are read."""
    what = f"{name}: `{shown(info.filename)}`"
    with archive.open(info) as file:
        try:
            version = npy.read_magic(file)
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, fortran, dtype = read_header(file)
        except (ValueError, SyntaxError, TypeError) as error:
            raise DataError(f"{what} is not a NumPy array ({shown(str(error))}); write it with numpy.savez") from error
        if dtype.hasobject:
            raise DataError(
                f"{what} holds Python objects (a pickle), which are never read; save plain numbers and text"
            )
        if dtype.itemsize == 0:
            raise DataError(f"{what} is {dtype}, of no bytes an item; write it with numpy.savez")
        if shape and shape[0] > limits.entries:
            raise DataError(f"{what} announces {shape[0]} items, more than the {limits.entries} allowed; take fewer")
        count = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or count > min(limits.archive_bytes, info.file_size):
            raise DataError(
                f"{what} announces {count} bytes, more than it holds or is allowed ({limits.archive_bytes})"
            )
        content = file.read(count)
    if len(content) != count:
        raise DataError(f"{what} is truncated: {len(content)} of {count} bytes; copy the file again")
    if count == 0:
        return np.empty(shape, dtype)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _class_names(values: NDArray[np.generic], name: str, limits: Limits) -> tuple[str, ...]:
    if values.ndim != 1 or values.dtype.kind not in "US":
        raise DataError(f"{name} is {values.dtype} of shape {values.shape}; expected text of shape (K,)")
    if len(values) > limits.classes:
        raise DataError(f"{name} holds {len(values)} class names, more than the {limits.classes} allowed; shorten it")
    return tuple(v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values.tolist())
