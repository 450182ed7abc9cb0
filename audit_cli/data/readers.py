"""Open a data path: what it is follows from its content, never from its suffix."""

from __future__ import annotations

from pathlib import Path

from audit_cli.data.arrays import read_npz
from audit_cli.data.cifar import find_cifar, read_cifar
from audit_cli.data.folder import read_folder
from audit_cli.data.parquet import read_parquet
from audit_cli.data.raw import Limits, RawImages, shown
from audit_cli.errors import DataError, UsageError

ACCEPTED = (
    "expected a folder with one sub-folder of images per class, an .npz archive, parquet, or CIFAR python batches"
)


def read_images(
    path: Path,
    *,
    split: str = "test",
    per_class: int | None = None,
    seed: int = 0,
    limits: Limits | None = None,
    unlabelled: bool = False,
) -> RawImages:
    """Read an ImageFolder, an .npz archive, a parquet file or CIFAR python batches.

    split: which part of a source that has several. per_class: at most so many images of every class, drawn by `seed`.
    unlabelled: also a plain folder of images, and an archive of images alone; `RawImages.labelled` says what it was.
    Raises DataError when the data is unreadable, hostile or over a limit; UsageError when there is nothing at `path`.
    """
    limits = limits or Limits()
    if path.is_dir():
        if folder := find_cifar(path):
            return read_cifar(folder, split=split, per_class=per_class, seed=seed, limits=limits)
        return read_folder(path, per_class=per_class, seed=seed, limits=limits, unlabelled=unlabelled)
    if not path.is_file():
        raise UsageError(f"{shown(path)}: no such file or folder; {ACCEPTED}")
    with path.open("rb") as file:
        head = file.read(4)
    if head == b"PK\x03\x04":
        return read_npz(path, split=split, per_class=per_class, seed=seed, limits=limits, unlabelled=unlabelled)
    if head == b"PAR1":
        return read_parquet(path, per_class=per_class, seed=seed, limits=limits, unlabelled=unlabelled)
    if head[:1] == b"\x80" or head[:2] == b"(d":
        raise DataError(f"{shown(path)}: looks like a pickle, which is never read as data; {ACCEPTED}")
    raise DataError(f"{shown(path)}: unknown format; {ACCEPTED}")
