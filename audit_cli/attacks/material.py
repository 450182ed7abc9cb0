"""What a poisoning run works with: images to train on, unseen ones, a network, and the clean models it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from audit_cli import models
from audit_cli.audit import feed
from audit_cli.checkpoint import open_checkpoint
from audit_cli.classifier import Classifier
from audit_cli.data import Preprocessing, RawImages, prepare, read_images
from audit_cli.data.cifar import find_cifar
from audit_cli.errors import DataError, UsageError
from audit_cli.models.create import create
from audit_cli.report.sanitise import clean as shown
from audit_cli.types import Context, TrustedData

HELD_OUT = 0.1  # of every class, where the data has no test split


@dataclass(frozen=True)
class Material:
    """train, test: disjoint, in the victim's size. held_out: the data had no test split, test is a part of it. victim:
    the network to train, on the context's device. clean: the given checkpoints by role ("base", "surrogate",
    "reference"), frozen, on that device. digests: of these checkpoints' files.
    """

    train: TrustedData
    test: TrustedData
    held_out: bool
    victim: Classifier
    clean: Mapping[str, Classifier]
    digests: Mapping[str, str]


def gather(
    data: Path,
    test: Path | None,
    arch: str | None,
    checkpoints: Mapping[str, Path],
    stated: Preprocessing | None,
    context: Context,
) -> Material:
    """Reads everything, so that whatever is wrong with it is told before any training.

    test: unseen images; None for the data's own test split, else a tenth held out. arch: of an untrained victim; None
    to start from the checkpoint "base". stated: size and normalisation, where the user gives them. Raises UsageError
    when a class has no training image, and as the readers do.
    """
    raw, unseen = _read(data, test)
    opened = {role: _open(path, unseen or raw, stated, context) for role, path in checkpoints.items()}
    if arch is None:
        victim = opened["base"][0].clone()
    else:
        classes = len(raw.class_names) or int(raw.labels.max()) + 1
        torch.manual_seed(context.seed)  # of the initial weights
        victim = create(arch, classes)
        if stated is not None and stated.mean is not None and stated.std is not None:
            victim = victim.with_normalisation(stated.mean, stated.std)
    fallback = Preprocessing.for_size(victim.size, "architecture") if victim.size else Preprocessing()
    geometry = stated if stated is not None and stated.size else fallback
    train = prepare(raw, geometry, victim.labels)
    if empty := [name for name, n in zip(train.class_names, train.per_class, strict=True) if not n]:
        raise UsageError(f"{shown(str(data))}: class `{shown(empty[0], 60)}` has no training image; add some")
    if unseen is None:
        rest, train = train.split(HELD_OUT, context.generator(stream=4))
    else:
        rest = prepare(unseen, geometry, victim.labels or train.class_names)
    return Material(
        train,
        rest,
        unseen is None,
        victim.on(context.device),
        {role: classifier for role, (classifier, _) in opened.items()},
        {role: digest for role, (_, digest) in opened.items()},
    )


def _read(data: Path, test: Path | None) -> tuple[RawImages, RawImages | None]:
    """Training images, and unseen ones unless they must be held out from the former."""
    train = read_images(data, split="train")
    if test is not None:
        return train, read_images(test, split="test")
    if data.is_dir() and find_cifar(data) is None:
        return train, None  # a folder per class has no splits
    try:
        unseen = read_images(data, split="test")
    except DataError:
        return train, None
    return train, None if unseen.digest == train.digest else unseen


def _open(path: Path, images: RawImages, stated: Preprocessing | None, context: Context) -> tuple[Classifier, str]:
    """A recognised checkpoint with its normalisation, frozen, and its digest."""
    with open_checkpoint(path, check=context.budget.check) as checkpoint:
        subject = feed(models.build(checkpoint), images, checkpoint, stated, context)
        return subject.classifier.frozen(), checkpoint.manifest_digest
