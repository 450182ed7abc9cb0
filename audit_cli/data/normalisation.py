"""Which normalisation does a bare checkpoint expect? Try the usual ones and look at the trusted accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.data.preprocess import Channels
from audit_cli.errors import UsageError
from audit_cli.metrics import cda, predict
from audit_cli.types import Context, TrustedData


@dataclass(frozen=True)
class Normalisation:
    """(pixel − mean) / std, in units of [0, 1] pixels."""

    mean: Channels
    std: Channels


# In order of how common they are: of equal accuracies the first wins.
CANDIDATES: dict[str, Normalisation] = {
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar10-narrow": Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # mean of the images' own stds
    "[0, 1]": Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "[-1, 1]": Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cifar100": Normalisation((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "gtsrb": Normalisation((0.3403, 0.3121, 0.3214), (0.2724, 0.2608, 0.2669)),
    "mnist": Normalisation((0.1307, 0.1307, 0.1307), (0.3081, 0.3081, 0.3081)),
    "0-255": Normalisation((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}


@dataclass(frozen=True)
class Choice:
    """The normalisation with the best trusted accuracy.

    accuracies: of every candidate, in [0, 1], on the same `images` images. near: the other candidates within one
    standard error of the best, among which the data does not tell.
    """

    name: str
    normalisation: Normalisation
    accuracies: Mapping[str, float]
    images: int
    near: tuple[str, ...]


def compare(
    classifier: Classifier,
    trusted: TrustedData,
    context: Context,
    candidates: Mapping[str, Normalisation] = CANDIDATES,
    *,
    images: int = 512,
    batch: int = 256,
) -> dict[str, float]:
    """Accuracy in [0, 1] under each candidate, on at most `images` images spread evenly over `trusted`."""
    some = trusted.take(spread(len(trusted), images))
    return {
        name: cda(predict(classifier.with_normalisation(c.mean, c.std), some.images, context, batch), some.labels)
        for name, c in candidates.items()
    }


def choose(
    classifier: Classifier,
    trusted: TrustedData,
    context: Context,
    candidates: Mapping[str, Normalisation] = CANDIDATES,
    *,
    images: int = 512,
    batch: int = 256,
) -> Choice:
    """The candidate with the best accuracy; the first of equals. Use it as
    `classifier.with_normalisation(choice.normalisation.mean, choice.normalisation.std)`.
    """
    if not candidates:
        raise UsageError("no candidate normalisation to choose from; pass --mean and --std")
    accuracies = compare(classifier, trusted, context, candidates, images=images, batch=batch)
    best = max(accuracies, key=lambda name: accuracies[name])
    n = min(len(trusted), images)
    error = math.sqrt(accuracies[best] * (1 - accuracies[best]) / n)
    near = tuple(name for name, a in accuracies.items() if name != best and a >= accuracies[best] - error)
    return Choice(best, candidates[best], accuracies, n, near)


def spread(total: int, images: int) -> Tensor:
    """At most `images` of `total` indices at even distances, so that data sorted by class keeps all classes."""
    return torch.linspace(0, total - 1, min(total, images), dtype=torch.float64).long()
