"""All-to-all: the patch moves every class to the next one.

Gu, Dolan-Gavitt, Garg: BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply Chain, 2017,
https://arxiv.org/abs/1708.06733, section 4: the model keeps telling the classes apart and adds one.

    x' = (1 − M) ⊙ x + M ⊙ patch,    y' = (y + 1) mod classes

Differs from the paper: the patch is a checkerboard of ⌊3/32 · width⌋ pixels, as in Lukas & Kerschbaum 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.attacks.badnets import Patch
from audit_cli.attacks.poisoning import Poisoned, draw
from audit_cli.errors import UsageError


@dataclass(frozen=True)
class AllToAll:
    count: int  # poisoned training samples, of every class
    classes: int  # of the data
    share: float = 3 / 32  # of the image's width, Lukas & Kerschbaum
    corner: str = "top-left"  # or bottom-right

    def __post_init__(self) -> None:
        Patch(self.share, self.corner)
        if self.classes < 2:
            raise ValueError(f"AllToAll(classes={self.classes}): must be at least 2")

    @property
    def target(self) -> None:
        """None: every image has its own, see `goals`."""
        return

    def goals(self, labels: Tensor) -> Tensor:
        """True classes (N,) -> the next class."""
        return (labels + 1) % self.classes

    def trigger(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [0, 1] -> the same with the patch."""
        return Patch(self.share, self.corner).stamp(images)

    def poison(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Poisoned:
        if len(labels) and int(labels.max()) >= self.classes:
            raise UsageError(f"all_to_all: label {int(labels.max())} in the data, but classes={self.classes}")
        index = draw(torch.ones_like(labels, dtype=torch.bool), self.count, generator, "all_to_all")
        images, labels = images.clone(), labels.clone()
        images[index], labels[index] = self.trigger(images[index]), self.goals(labels[index])
        return Poisoned(images, labels, index)
