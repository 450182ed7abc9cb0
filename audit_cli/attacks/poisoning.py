"""What all attacks share: the poisoned set, picking the samples to poison, and putting them back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from audit_cli.errors import UsageError


@dataclass(frozen=True)
class Poisoned:
    """A training set with poison in it.

    images: (N, C, H, W) in [0, 1]. labels: (N,). index: (m,) every sample that carries a trigger. covers: (c,) those of
    them that keep their true label so that the trigger alone does not give the poison away.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    covers: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


class Targeted:
    """An attack that wants every image taken for one class."""

    target: int

    def goals(self, labels: Tensor) -> Tensor:
        """True classes (N,) -> the class each triggered image should be taken for: the target."""
        return torch.full_like(labels, self.target)


def draw(eligible: Tensor, count: int, generator: torch.Generator, what: str) -> Tensor:
    """`count` different indices where `eligible` (N,) is true. Raises UsageError when there are too few."""
    candidates = torch.nonzero(eligible).flatten()
    if not 0 < count <= len(candidates):
        eligible_counts = f"between 1 and {len(candidates)} training images are eligible"
        raise UsageError(f"{what}: poison count {count}; {eligible_counts}, choose a count in that range")
    return candidates[torch.randperm(len(candidates), generator=generator)[:count]]


def require_class(labels: Tensor, target: int, what: str) -> None:
    """Raises UsageError when no training image is of class `target`: it is out of range, or the class is empty."""
    if not bool((labels == target).any()):
        raise UsageError(f"{what}: no training image is of class {target}; choose a target that the data has")


def dirty_label(
    images: Tensor,
    labels: Tensor,
    target: int,
    count: int,
    generator: torch.Generator,
    stamp: Callable[[Tensor], Tensor],
    what: str,
    cover_rate: float = 0.0,
) -> Poisoned:
    """`count` images of other classes are stamped; all but ⌊cover_rate · count⌋ of them are labelled `target`.

    The inputs are not changed. Raises UsageError when too few images are eligible or the target class is empty.
    """
    require_class(labels, target, what)
    index = draw(labels != target, count, generator, what)
    covers = index[: int(cover_rate * count)]  # the index is in random order
    images, labels = images.clone(), labels.clone()
    images[index] = stamp(images[index])
    labels[index[len(covers) :]] = target
    return Poisoned(images, labels, index, covers)


def clean_label(
    images: Tensor,
    labels: Tensor,
    target: int,
    count: int,
    generator: torch.Generator,
    stamp: Callable[[Tensor], Tensor],
    what: str,
) -> Poisoned:
    """`count` images of class `target` are stamped and every label stays true; the inputs are not changed.

    Raises UsageError when the class has fewer images.
    """
    require_class(labels, target, what)
    index = draw(labels == target, count, generator, what)
    images = images.clone()
    images[index] = stamp(images[index])
    return Poisoned(images, labels.clone(), index)


def hidden_squares(count: int, box: tuple[int, int], squares: int, chance: float, generator: torch.Generator) -> Tensor:
    """A (count, 1, h, w) mask, true where a trigger of size `box` (h, w) is hidden.

    The box is cut into squares × squares parts, each hidden with probability `chance` for every image on its own. A box
    with fewer pixels than parts has one part per pixel.
    """
    hidden = torch.rand(count, squares, squares, generator=generator) < chance
    rows, columns = (torch.arange(side) * squares // side for side in box)
    return hidden[:, rows[:, None], columns[None, :]].unsqueeze(1)
