"""Networks that somebody else trained, for victims to start from: files in the zoo's folder, known by their SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from audit_cli.checkpoint import open_checkpoint
from audit_cli.classifier import Classifier
from audit_cli.errors import UsageError
from audit_cli.games.config import Network
from audit_cli.models import build


def read_published(folder: Path, network: Network, classes: int) -> Classifier:
    """The network of `network.weights` in `folder`, normalised as the bench says.

    Raises UsageError when the file is missing, another one, or made for another number of classes or another arch.
    """
    path = folder / str(network.weights)
    if not path.is_file():
        raise UsageError(f"{path}: no such file; the bench starts from it, so put it there (SHA-256 {network.sha256})")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != network.sha256:
        raise UsageError(f"{path}: its SHA-256 is {digest}, the bench starts from {network.sha256}")
    with open_checkpoint(path) as checkpoint:
        classifier = build(checkpoint, mean=network.mean, std=network.std)
    if (classifier.arch, classifier.num_classes) != (network.arch, classes):
        found = f"{classifier.arch} of {classifier.num_classes} classes"
        raise UsageError(f"{path}: {found}, where the bench and its images want {network.arch} of {classes}")
    return classifier
