"""Which models are of one kind, so that their scores may be compared."""

from __future__ import annotations

import re
from dataclasses import dataclass

from audit_cli.classifier import Classifier
from audit_cli.report.sanitise import clean
from audit_cli.types import TrustedData


@dataclass(frozen=True)
class Domain:
    """Models of one kind: the architecture without its sizes, the image size in pixels, and the classes by name: what
    is ordinary for photographs need not be for digits."""

    arch: str
    height: int
    width: int
    classes: tuple[str, ...]

    @classmethod
    def of(cls, classifier: Classifier, trusted: TrustedData) -> Domain:
        _, height, width = trusted.shape
        names = map(named, trusted.class_names)
        return cls(kind(classifier.arch), height, width, tuple(sorted(names)))

    @property
    def ambiguous(self) -> bool:
        """Do two classes have one name? Then their scores cannot be told apart."""
        return len(set(self.classes)) < len(self.classes)

    def __str__(self) -> str:
        few = ", ".join(self.classes[:3]) + (" …" if len(self.classes) > 3 else "")
        return f"{self.arch}, {self.height} x {self.width}, {len(self.classes)} classes: {few}"


def named(name: str) -> str:
    """A class's name as a domain has it."""
    return clean(name, 60).casefold()


def kind(arch: str) -> str:
    """`resnet20-w24-cifar` -> `resnet-cifar`: the architecture's name without depth and width."""
    return re.sub(r"(-w?\d+)+(?=-|$)|\d+(?=-|$)", "", arch)
