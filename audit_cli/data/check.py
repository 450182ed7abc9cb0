"""Is the trusted set itself fit to be trusted? Statistics of the raw images that need no model."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from audit_cli.data.raw import RawImages
from audit_cli.report.sanitise import clean

FLAT = 2.0  # standard deviation, in grey levels of 255, below which an image shows nothing


@dataclass(frozen=True)
class DataReport:
    """What `check` found. document: JSON-able. problems: reasons not to rely on the data; warnings: remarks."""

    document: dict[str, object]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def check(raw: RawImages, *, min_images: int = 100, min_per_class: int = 5) -> DataReport:
    """Count, measure and compare the images of a data set. Pure; nothing is judged beyond the minima given."""
    names = [clean(name, 80) for name in raw.class_names] or [str(c) for c in range(int(raw.labels.max()) + 1)]
    per_class = np.bincount(raw.labels, minlength=len(names)).tolist()
    sizes = Counter(f"{image.shape[0]}x{image.shape[1]}" for image in raw.images)
    low, high = min(int(image.min()) for image in raw.images), max(int(image.max()) for image in raw.images)
    flat = [i for i, image in enumerate(raw.images) if float(image.std()) < FLAT]
    repeated, conflicts = _duplicates(raw)

    problems, warnings = [], list(raw.notes)
    if len(raw) < min_images:
        problems.append(f"{len(raw)} images, fewer than {min_images}: add {min_images - len(raw)}")
    if short := [f"{name} ({n})" for name, n in zip(names, per_class, strict=True) if n < min_per_class]:
        problems.append(f"classes with fewer than {min_per_class} images: {len(short)}: {_some(short)}")
    if len(names) < 2:
        problems.append("a single class: success of a trigger cannot be measured")
    if conflicts:
        pairs = [f"{names[a]} and {names[b]} ({n})" for (a, b), n in conflicts.most_common()]
        problems.append(f"identical images under different labels: {_some(pairs)}")
    if high <= 1:
        problems.append(f"pixel values in {low}..{high} of 255: images in [0, 1] were stored as whole numbers")
    if 2 * len(flat) > len(raw):
        problems.append(f"{len(flat)} of {len(raw)} images are nearly constant")
    elif flat:
        warnings.append(f"nearly constant images: {len(flat)} (first: number {flat[0]})")
    if repeated:
        warnings.append(f"exact copies of another image of the same class: {repeated}")
    if len(sizes) > 1:
        warnings.append(f"images of {len(sizes)} sizes: a scan needs the model's size, or --size")
    if min(per_class) > 0 and max(per_class) > 10 * min(per_class):
        warnings.append(f"classes are unbalanced: {min(per_class)} to {max(per_class)} images")
    if list(raw.class_names) == sorted(raw.class_names) != sorted(raw.class_names, key=_natural):
        warnings.append(
            "class names sort differently as text and as numbers; check that labels follow the model's order"
        )

    document: dict[str, object] = {
        "source": raw.source,
        "digest": raw.digest,
        "images": len(raw),
        "classes": len(names),
        "named": bool(raw.class_names),
        "per_class": [{"class": name, "images": n} for name, n in zip(names, per_class, strict=True)],
        "sizes": dict(sizes.most_common(10)),
        "value_range": [low, high],
        "nearly_constant": len(flat),
        "duplicates": {"same_class": repeated, "different_labels": sum(conflicts.values())},
        "problems": problems,
        "warnings": warnings,
    }
    return DataReport(document, tuple(problems), tuple(warnings))


def _duplicates(raw: RawImages) -> tuple[int, Counter[tuple[int, int]]]:
    """Surplus copies within classes, and how many images occur under each pair of labels."""
    seen: defaultdict[tuple[tuple[int, ...], bytes], list[int]] = defaultdict(list)
    for image, label in zip(raw.images, raw.labels.tolist(), strict=True):
        seen[image.shape, hashlib.sha256(np.ascontiguousarray(image).data).digest()].append(label)
    conflicts: Counter[tuple[int, int]] = Counter()
    for labels in seen.values():
        conflicts.update(pairwise(sorted(set(labels))))
    return sum(len(labels) - len(set(labels)) for labels in seen.values()), conflicts


def _natural(name: str) -> tuple[int, str]:
    """Numbers before text, by value."""
    return (int(name), name) if name.isdecimal() and len(name) < 10 else (10**10, name)


def _some(items: list[str]) -> str:
    return ", ".join(items[:5]) + (" …" if len(items) > 5 else "")
