"""How many held-out images it takes to say that a repair cost at most so much accuracy.

Only images on which pivot and repaired model differ in being right carry information. Let d be their share. With as
many lost as won, the adjusted Wald interval of the paired drop (metrics.cda_drop) has the half-width

    z · √(n·d + 2) / (n + 2)        n: held-out images, z = 1.96

so n ≈ z²·d / Δ² images resolve a drop of Δ: at 2 points, 96 for every hundredth of d and some more for the 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from audit_cli.errors import UnsupportedError
from audit_cli.metrics import Z95, classes_of
from audit_cli.types import TrustedData

LEAST_DISAGREEMENT = 0.01  # ours: no repair that removed a backdoor changed fewer answers, see fixtures/results/repair
FIT_SHARE = 0.5  # ours: share of the trusted images a repair may use; the rest measures


def half_width(n: int, disagreement: float, z: float = Z95) -> float:
    """Half-width of the 95 % interval of a paired drop on n images, as a fraction."""
    return z * math.sqrt(n * disagreement + 2) / (n + 2)


def images_needed(drop: float, disagreement: float = LEAST_DISAGREEMENT, z: float = Z95) -> int:
    """The smallest holdout on which `half_width` is at most `drop`: the positive root in n + 2, rounded up."""
    b = z * z * disagreement
    root = (b + math.sqrt(b * b + 8 * (1 - disagreement) * z * z * drop * drop)) / (2 * drop * drop)
    return max(1, math.ceil(root - 2 - 1e-9))


def disagreement(before: Tensor, after: Tensor, labels: Tensor) -> float:
    """Share of images on which exactly one of two models is right; logits or classes, as in metrics."""
    return float(((classes_of(before) == labels) != (classes_of(after) == labels)).double().mean())


def divide(trusted: TrustedData, max_drop: float, min_per_class: int, generator: torch.Generator) -> tuple[
    TrustedData, TrustedData
]:  # fmt: skip
    """Trusted images for the repair and for judging it.

    Raises UnsupportedError, which ends as INCONCLUSIVE, when a class has too few images for both parts or the second
    part cannot resolve `max_drop`; the message says how many are needed.
    """
    needed_per_class = 2 * max(1, min_per_class)
    short = [c for c, n in enumerate(trusted.per_class) if n < needed_per_class]
    if short:
        least = min(trusted.per_class)
        raise UnsupportedError(
            f"{len(short)} of {len(trusted.class_names)} classes have too few trusted images (the fewest: {least}); "
            f"a repair and its check need {needed_per_class} of each class"
        )
    fit, holdout = trusted.split(FIT_SHARE, generator)
    needed = images_needed(max_drop)
    if len(holdout) < needed:
        whole = math.ceil(needed / (1 - FIT_SHARE)) + len(trusted.class_names)  # every class is rounded up in `fit`
        raise UnsupportedError(
            f"a drop of {100 * max_drop:g} points cannot be verified on {len(holdout)} held-out images; {needed} are "
            f"needed, so about {whole} trusted images, where there are {len(trusted)}"
        )
    return fit, holdout
