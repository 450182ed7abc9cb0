"""Parquet files of images and labels as Hugging Face datasets are stored: encoded images in one column, class indices
in another, class names in the schema's metadata. Needs pyarrow, an extra."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from audit_cli.data.arrays import as_labels
from audit_cli.data.folder import decode
from audit_cli.data.raw import Labels, Limits, Pixels, RawImages, check_count, pick, shown
from audit_cli.errors import DataError, UsageError

IMAGES = ("image", "img")  # columns taken where several could be meant
LABELS = ("label", "labels")
ROWS_AT_ONCE = 64


def read_parquet(
    path: Path, *, per_class: int | None, seed: int, limits: Limits, unlabelled: bool = False
) -> RawImages:
    """Read one column of image files (bytes, or a structure with `bytes`) and one of class indices; of several columns
    those called image or img and label or labels. per_class: at most so many images of every class, drawn by `seed`.

    unlabelled: the labels may be missing. Raises UsageError without pyarrow, DataError naming the column and what was
    expected of it.
    """
    name = shown(path)
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UsageError(f"{name}: parquet needs pyarrow; pip install 'audit-cli[parquet]'") from error
    try:
        with parquet.ParquetFile(path) as file:
            return _read(file, name, per_class, seed, limits, unlabelled)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{name}: not a readable parquet file ({shown(str(error))}); write it again") from error


def _read(file: Any, name: str, per_class: int | None, seed: int, limits: Limits, unlabelled: bool) -> RawImages:
    """`file`: a pyarrow ParquetFile. Its footer says how much is to come; nothing is read that passes a limit."""
    footer, schema = file.metadata, file.schema_arrow
    if footer.num_rows > limits.entries:
        raise DataError(f"{name}: {footer.num_rows} rows, more than the {limits.entries} allowed; pass a smaller file")
    for k in range(footer.num_row_groups):
        if footer.row_group(k).total_byte_size > limits.archive_bytes:
            raise DataError(f"{name}: a row group of more than {limits.archive_bytes} bytes; write smaller ones")
    column = _column(schema, IMAGES, _holds_images, f"{name}: images")
    key = _column(schema, LABELS, _holds_labels, f"{name}: labels")
    if column is None or (key is None and not unlabelled):
        what = "image bytes" if column is None else "class indices"
        raise DataError(f"{name}: no column of {what} among {shown(', '.join(schema.names)) or 'none'}; add one")
    labels = np.zeros(footer.num_rows, dtype=np.int64)
    classes: tuple[str, ...] = ()
    if key is not None:
        where = f"{name}: column {shown(key)!r}"
        labels, classes = _labels(file, key, limits, where), _classes(schema, key, limits, where)
        if classes and len(labels) and labels.max() >= len(classes):
            raise DataError(f"{where} has the label {labels.max()} but only {len(classes)} class names; add the others")
    chosen = pick(labels, per_class, seed)
    check_count(len(chosen), limits, name)
    images = _decoded(file, column, set(chosen.tolist()), name, limits)
    return RawImages.of(images, labels[chosen], classes, name, labelled=key is not None)


def _labels(file: Any, key: str, limits: Limits, where: str) -> Labels:
    values = file.read([key], use_threads=False)[key]
    if values.null_count:
        raise DataError(f"{where} has no label in {values.null_count} rows; remove these")
    return as_labels(values.to_numpy(), where, limits)


def _decoded(file: Any, column: str, chosen: set[int], name: str, limits: Limits) -> list[Pixels]:
    images: list[Pixels] = []
    total = 0
    for row, value in enumerate(_values(file, column)):
        if row not in chosen:
            continue
        content, where = value["bytes"] if isinstance(value, dict) else value, f"{name}: row {row}"
        if not content:
            raise DataError(f"{where} of column {shown(column)!r} holds no image bytes; remove the row")
        if len(content) > limits.file_bytes:
            raise DataError(f"{where}: larger than the {limits.file_bytes} bytes allowed; remove or shrink it")
        images.append(decode(content, where, limits))
        total += images[-1].nbytes
        if total > limits.total_bytes:
            raise DataError(f"{name}: more than {limits.total_bytes} bytes of pixels; limit the images per class")
    return images


def _values(file: Any, column: str) -> Iterator[Any]:
    for batch in file.iter_batches(ROWS_AT_ONCE, columns=[column], use_threads=False):
        yield from batch[column].to_pylist()


def _column(schema: Any, usual: tuple[str, ...], fits: Callable[[Any], bool], where: str) -> str | None:
    """The one column that fits, or of several the one with a usual name; None where there is none."""
    found = [field.name for field in schema if fits(field.type)]
    named = [name for name in usual if name in found]
    if len(found) > 1 and not named:
        what = shown(", ".join(found))
        raise DataError(f"{where} may be in several columns ({what}); call one of them {usual[0]}")
    return next(iter([*named, *found]), None)


def _holds_images(kind: Any) -> bool:
    """Bytes, or a structure that has them: what Hugging Face's Image feature is stored as."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(k).name == "bytes" and _holds_images(kind.field(k).type) for k in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_labels(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(kind))


def _classes(schema: Any, key: str, limits: Limits, where: str) -> tuple[str, ...]:
    """The names of Hugging Face's ClassLabel feature in the schema's metadata; none where it is missing."""
    told = (schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(told)["info"]["features"][key].get("names", []) if told else []
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where} has damaged metadata; write the file again") from error
    if not isinstance(names, list) or len(names) > limits.classes:
        raise DataError(f"{where} has no list of at most {limits.classes} class names; write the file again")
    return tuple(map(str, names))
