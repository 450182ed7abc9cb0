"""The images of a bench: one part trains victims, one is the defender's, one measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from audit_cli.data import Preprocessing, prepare, read_images
from audit_cli.errors import UsageError
from audit_cli.games.config import Bench
from audit_cli.report.sanitise import clean
from audit_cli.types import TrustedData


@dataclass(frozen=True)
class Data:
    """train: what victims are trained on. trusted: the defender's images, as many of every class. measured: what cda
    and asr are taken on. The three are disjoint; the last two are of the test split. pool: what each victim's own
    trusted images are drawn from; None where all have the same."""

    train: TrustedData
    trusted: TrustedData
    measured: TrustedData
    pool: TrustedData | None = None

    def trusted_of(self, seed: int) -> TrustedData:
        """The defender's images of the victim with this seed."""
        if self.pool is None:
            return self.trusted
        return self.pool.take(_of_each(self.pool, max(self.trusted.per_class), seed)[0])


def read_data(path: Path, bench: Bench) -> Data:
    """The images at `path`, which must have a train and a test split. Raises DataError, and UsageError when a class has
    no training image or the test split is too small for what the bench asks."""
    train = prepare(read_images(path, split="train"), Preprocessing())
    raw = read_images(path, split="test")
    if raw.digest == train.digest:
        raise UsageError(f"{clean(str(path))}: has no test split; a bench measures on images no victim was trained on")
    test = prepare(raw, Preprocessing(), train.class_names)
    if empty := [name for name, n in zip(train.class_names, train.per_class, strict=True) if not n]:
        raise UsageError(f"{clean(str(path))}: class `{clean(empty[0], 60)}` has no training image; add some")
    each = bench.trusted // len(test.class_names)
    if each < 1 or min(test.per_class) <= each:
        raise UsageError(
            f"{clean(str(path))}: {bench.trusted} trusted images are {each} of each class, and the smallest class has "
            f"{min(test.per_class)} test images; at least one of each must be left to measure on"
        )
    mine, rest = _of_each(test, each, bench.seed)
    trusted, measured = test.take(mine), test.take(rest[: bench.measured])
    pool = test.take(torch.cat([mine, rest[bench.measured :]])) if bench.redrawn else None
    if pool is not None and min(pool.per_class) <= each:
        raise UsageError(f"{clean(str(path))}: with {bench.measured} images to measure on there is nothing to redraw")
    return Data(train, trusted, measured, pool)


def _of_each(data: TrustedData, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of `count` random images of every class, and of all others, both in random order."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    rank = torch.empty_like(order)
    for c in range(len(data.class_names)):
        of_class = order[data.labels[order] == c]
        rank[of_class] = torch.arange(len(of_class))
    return order[rank[order] < count], order[rank[order] >= count]
