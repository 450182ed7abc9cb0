"""What all attacks share: picking the samples to poison and putting them back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.errors import UsageError


@dataclass(frozen=True)
class Poisoned:
    """A training set with poison in it: images (N, C, H, W) in [0, 1], labels (N,), index (m,) of what was altered."""

    images: Tensor
    labels: Tensor
    index: Tensor


def draw(eligible: Tensor, count: int, generator: torch.Generator, what: str) -> Tensor:
    """`count` different indices where `eligible` (N,) is true. Raises UsageError when there are too few."""
    candidates = torch.nonzero(eligible).flatten()
    if not 0 < count <= len(candidates):
        raise UsageError(f"{what}: poison count {count}; between 1 and {len(candidates)} training images are eligible")
    return candidates[torch.randperm(len(candidates), generator=generator)[:count]]


def dirty_label(
    images: Tensor,
    labels: Tensor,
    target: int,
    count: int,
    generator: torch.Generator,
    stamp: Callable[[Tensor], Tensor],
    what: str,
) -> Poisoned:
    """`count` images of other classes are stamped and labelled as `target`; the inputs are not changed."""
    index = draw(labels != target, count, generator, what)
    images, labels = images.clone(), labels.clone()
    images[index], labels[index] = stamp(images[index]), target
    return Poisoned(images, labels, index)
