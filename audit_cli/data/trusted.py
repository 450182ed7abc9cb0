"""Trusted data for a model: read, bring to the model's size, match class names to the model's labels."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch

from audit_cli.data.preprocess import Preprocessing
from audit_cli.data.raw import Limits, RawImages
from audit_cli.data.readers import read_images
from audit_cli.errors import DataError
from audit_cli.report.sanitise import clean
from audit_cli.types import TrustedData

_PLACEHOLDER = re.compile(r"(?:label_?)?(\d{1,18})", re.IGNORECASE)


def load_trusted(
    path: Path,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] = (),
    split: str = "test",
    per_class: int | None = None,
    seed: int = 0,
    limits: Limits | None = None,
) -> TrustedData:
    """Labelled images of `path`, ready for a model.

    preprocessing: the model's geometry; without it, images are taken as they are. labels: the model's class names in
    logit order, empty when it has none; data classes are matched to them by name, and the result's labels are then the
    model's. split, per_class, seed, limits: as in `read_images`. Raises DataError, UsageError.
    """
    raw = read_images(path, split=split, per_class=per_class, seed=seed, limits=limits)
    return prepare(raw, preprocessing or Preprocessing(), labels)


def prepare(raw: RawImages, preprocessing: Preprocessing, labels: Sequence[str] = ()) -> TrustedData:
    """Trusted data from images already read. Raises DataError when class names and the model's labels disagree."""
    index, names = match_classes(raw, labels)
    mapped = torch.tensor(index, dtype=torch.int64)[torch.from_numpy(raw.labels)]
    return TrustedData(preprocessing.geometry(raw), mapped, names, raw.digest, raw.source)


def match_classes(raw: RawImages, labels: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """For each data label its index among the model's outputs, and the class names in that order.

    Names are compared without regard to case, spaces and underscores; a model label such as "tench, Tinca tinca" also
    matches each of its parts. A model without labels takes the data's order, and so does one with mere numbers for
    labels, in ascending order, unless the data's classes are called by such numbers too.
    """
    highest = int(raw.labels.max())
    numbers = [_PLACEHOLDER.fullmatch(label.strip()) for label in labels]
    if all(numbers) and not (raw.class_names and _all_among(raw.class_names, labels)):
        _require_order([int(number[1]) for number in numbers if number], raw.source)
        names = raw.class_names or tuple(str(c) for c in range(max(highest + 1, len(labels))))
        if labels and len(names) > len(labels):
            raise DataError(f"{raw.source}: {len(names)} classes, but the model has {len(labels)} outputs")
        return list(range(len(names))), names
    if not raw.class_names:  # labels are indices already
        if highest >= len(labels):
            raise DataError(f"{raw.source}: label {highest}, but the model has {len(labels)} outputs")
        return list(range(len(labels))), tuple(labels)
    return _by_name(raw.class_names, tuple(labels), raw.source), tuple(labels)


def _all_among(names: Sequence[str], labels: Sequence[str]) -> bool:
    return bool(labels) and {_key(name) for name in names} <= {_key(label) for label in labels}


def _require_order(numbers: Sequence[int], source: str) -> None:
    """Numbers that only count the classes ascend; others mean something, and nothing here says what."""
    if list(numbers) != sorted(set(numbers)):
        raise DataError(
            f"{source}: the model's labels are numbers in an order of their own, and the data's classes are not called "
            "by these numbers; name the classes of both alike"
        )


def _by_name(names: tuple[str, ...], labels: tuple[str, ...], source: str) -> list[int]:
    if [_key(name) for name in names] == [_key(label) for label in labels]:
        return list(range(len(labels)))  # the same list, even if a name occurs twice (ImageNet has two cranes)
    whole: defaultdict[str, list[int]] = defaultdict(list)
    parts: defaultdict[str, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        whole[_key(label)].append(i)
        for part in {_key(part) for part in label.split(",")}:
            parts[part].append(i)
    found = [whole.get(_key(name)) or parts.get(_key(name)) or [] for name in names]
    if missing := [name for name, indices in zip(names, found, strict=True) if not indices]:
        raise DataError(
            f"{source}: {len(missing)} of {len(names)} class names are not among the model's labels: {_some(missing)}; "
            f"the model's begin with {_some(labels)}; rename the classes"
        )
    if unclear := [name for name, indices in zip(names, found, strict=True) if len(indices) > 1]:
        raise DataError(
            f"{source}: class names that match several of the model's labels: {_some(unclear)}; rename them"
        )
    index = [indices[0] for indices in found]
    if twice := [name for name, i in zip(names, index, strict=True) if index.count(i) > 1]:
        raise DataError(f"{source}: class names that match the same label of the model: {_some(twice)}; merge them")
    return index


def _key(name: str) -> str:
    return re.sub(r"[\s_]+", "", unicodedata.normalize("NFKC", name)).casefold()


def _some(names: Sequence[str]) -> str:
    listed = ", ".join(f"`{clean(name, 60)}`" for name in names[:5])
    return listed + (" …" if len(names) > 5 else "")
