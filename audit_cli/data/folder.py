"""ImageFolder: one sub-folder per class, named after it, holding image files. Labels follow the sorted folder names, as
in torchvision's ImageFolder.

The folder is hostile: the format of a file is what its bytes say, within an allowlist; a Pillow warning is an error; a
link may not lead out of the folder; EXIF orientation is not applied (as in torchvision).
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from audit_cli.data.raw import Labels, Limits, Pixels, RawImages, check_count, pick, read_bounded, shown
from audit_cli.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
EIGHT_BIT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}


def read_folder(root: Path, *, per_class: int | None, seed: int, limits: Limits, unlabelled: bool = False) -> RawImages:
    """Read an ImageFolder; `per_class` limits the images decoded of every class, drawn by `seed`.

    unlabelled: a folder without sub-folders is read as images without labels.
    Raises DataError naming the offending file and the remedy.
    """
    names, files, labels, notes = _listing(root, limits, unlabelled)
    chosen = pick(labels, per_class, seed)
    check_count(len(chosen), limits, shown(root))
    images, total = [], 0
    for i in chosen:
        images.append(decode(read_bounded(files[i], limits.file_bytes), shown(files[i]), limits))
        total += images[-1].nbytes
        if total > limits.total_bytes:
            raise DataError(
                f"{shown(root)}: more than {limits.total_bytes} bytes of pixels; limit the images per class"
            )
    return RawImages.of(images, labels[chosen], names, shown(root), notes, labelled=bool(names))


def decode(content: bytes, name: str, limits: Limits) -> Pixels:
    """One image file's bytes -> uint8 (H, W, 3). `name` stands in messages. Raises DataError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a decompression bomb, corrupt EXIF, a malformed MPO …
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _accept(image, name, limits)
                image.load()
                # Pillow warns of a palette's transparency unless it is dropped by way of RGBA.
                still = image.convert("RGBA") if image.mode in ("P", "PA") else image
                return np.asarray(still.convert("RGB"))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"{name}: not a {', '.join(FORMATS)} image by content; convert or remove it") from error
    except Exception as error:  # whatever a decoder raises on hostile bytes
        raise DataError(f"{name}: damaged or hostile image ({shown(str(error))}); replace or remove it") from error


def _accept(image: Image.Image, name: str, limits: Limits) -> None:
    """Judge the header, before a pixel is decoded."""
    width, height = image.size
    if width * height > limits.pixels:
        raise DataError(f"{name}: {width}x{height} is more than {limits.pixels} pixels; shrink or remove it")
    if image.mode not in EIGHT_BIT:
        raise DataError(f"{name}: pixel mode {image.mode} is not 8 bits a channel; convert it to 8-bit RGB")
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise DataError(f"{name}: animated image; replace it by a still one")


def _listing(root: Path, limits: Limits, unlabelled: bool) -> tuple[list[str], list[Path], Labels, list[str]]:
    """Sorted class names, image files and their labels, notes on what was ignored; no names without labels."""
    inside = root.resolve()
    names: list[str] = []
    beside: list[Path] = []
    for entry in _entries(root, limits.entries):
        _contained(Path(entry.path), inside)
        if entry.is_dir():
            names.append(entry.name)
        else:
            beside.append(Path(entry.path))
    if unlabelled and beside and not names:
        return [], sorted(beside), np.zeros(len(beside), dtype=np.int64), []
    if not names:
        raise DataError(f"{shown(root)}: no class folders; expected one sub-folder of images per class")
    if len(names) > limits.classes:
        raise DataError(f"{shown(root)}: {len(names)} class folders, more than the {limits.classes} allowed")
    names.sort()
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        before = len(files)
        for entry in sorted(_entries(root / name, limits.entries - len(files)), key=lambda e: e.name):
            path = Path(entry.path)
            _contained(path, inside)
            if entry.is_dir():
                raise DataError(
                    f"{shown(path)}: a folder inside a class folder; pass the folder whose sub-folders hold the images"
                )
            files.append(path)
            labels.append(label)
        if len(files) == before:
            raise DataError(f"{shown(root / name)}: class folder without images; add images or remove the folder")
    notes = [f"files beside the class folders, ignored: {len(beside)}"] if beside else []
    return names, files, np.array(labels, dtype=np.int64), notes


def _entries(folder: Path, limit: int) -> Iterator[os.DirEntry[str]]:
    """Entries whose name does not begin with a dot; gives up on a folder with more than `limit`."""
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= limit:
                    raise DataError(f"{shown(folder)}: too many files to look at; pass a smaller folder")
                if not entry.name.startswith("."):
                    yield entry
    except OSError as error:
        raise DataError(f"{shown(folder)}: cannot be listed ({error.strerror})") from error


def _contained(path: Path, root: Path) -> None:
    """Links are followed inside the data folder only."""
    if path.is_symlink() and not path.resolve().is_relative_to(root):
        raise DataError(f"{shown(path)}: a link that leads out of the data folder; replace it by the file itself")
