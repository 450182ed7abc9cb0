"""Decoded images as read, before any preprocessing, and the limits within which hostile data is read."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audit_cli.errors import DataError
from audit_cli.report.sanitise import clean

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class RawImages:
    """Labelled images as decoded.

    images: uint8 arrays (H, W, 3) in RGB, possibly of different sizes. labels: (N,) int64. class_names: in label order,
    or empty when the data names no classes and the labels are indices of the model's outputs. digest: sha256 over
    pixels, labels and names. notes: remarks on what was ignored or converted. labelled: False where the data has no
    labels, which are then all 0.
    """

    images: tuple[Pixels, ...]
    labels: Labels
    class_names: tuple[str, ...]
    digest: str
    source: str
    notes: tuple[str, ...] = ()
    labelled: bool = True

    @classmethod
    def of(
        cls,
        images: Sequence[Pixels],
        labels: Labels,
        class_names: Sequence[str],
        source: str,
        notes: Sequence[str] = (),
        labelled: bool = True,
    ) -> RawImages:
        """Raw images with their digest. Raises DataError when there are none."""
        if len(images) == 0:
            raise DataError(f"{source}: no images; expected at least one per class")
        digest = digest_of(images, labels, class_names)
        return cls(tuple(images), labels, tuple(class_names), digest, source, tuple(notes), labelled)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Limits:
    """What a data set may cost at most; the defaults are generous for an audit and fatal for a bomb."""

    pixels: int = 50_000_000  # of one image
    file_bytes: int = 64 * 2**20  # of one image file
    archive_bytes: int = 4 * 2**30  # of one array, or one batch file
    images: int = 200_000  # decoded
    total_bytes: int = 8 * 2**30  # of all decoded pixels
    entries: int = 2_000_000  # directory entries looked at, and items of one array
    classes: int = 100_000

    def __post_init__(self) -> None:
        for f in fields(self):
            if getattr(self, f.name) < 1:
                raise ValueError(f"Limits({f.name}={getattr(self, f.name)}): must be positive")


def digest_of(images: Sequence[Pixels], labels: Labels, class_names: Sequence[str]) -> str:
    """sha256, as hexadecimal, over names, labels, and every image's shape and pixels."""
    total = hashlib.sha256(json.dumps([len(images), list(class_names)]).encode())
    total.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    for image in images:
        total.update(np.array(image.shape, dtype="<i8").tobytes())
        total.update(np.ascontiguousarray(image).data)
    return total.hexdigest()


def pick(labels: Labels, per_class: int | None, seed: int) -> NDArray[np.intp]:
    """Indices, ascending, of at most `per_class` images of every class, drawn by `seed`; all of them for None."""
    if per_class is None:
        return np.arange(len(labels))
    if per_class < 1:
        raise DataError(f"limit of {per_class} images per class: must be positive")
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # grouped by class, shuffled within
    grouped = labels[order]
    rank = np.arange(len(order)) - np.searchsorted(grouped, grouped)
    return np.sort(order[rank < per_class])


def check_count(count: int, limits: Limits, source: str) -> None:
    """Raises DataError when more images would be decoded than allowed."""
    if count > limits.images:
        raise DataError(f"{source}: {count} images, more than the {limits.images} allowed; limit the images per class")


def shown(path: Path | str) -> str:
    """A path or name, fit for a message."""
    return clean(str(path))


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Never waits on a pipe. Raises DataError."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError(f"{shown(path)}: not a regular file; remove it from the data")
            content = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be read ({error.strerror}); mend or remove it") from error
    if len(content) > limit:
        raise DataError(f"{shown(path)}: larger than the {limit} bytes allowed; remove or shrink it")
    return content
