"""What a repair costs in accuracy, and how many held-out images it takes to say so.

Only images on which pivot and repaired model differ in being right carry information, and of those that are near a
boundary it is chance which model is. So every image is shown as it is and moved a little in four directions, and each
of these in the mirror, where the pivot is as good there; and it counts how sure the models are (belief.py), unless what
that says lies outside the interval of what counting says. Then lost(x), how much less often an image is right, scatters
less (fixtures/results/views-study.json). Let d be the mean of lost². With as much lost as won, the adjusted Wald
interval of the paired drop (metrics.paired_drop) has the half-width

    z · √(n·d + 2) / (n + 2)        n: held-out images, z = 1.96

so n ≈ z²·d / Δ² images resolve a drop of Δ: at 2 points, 96 for every hundredth of d and some more for the 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.errors import UnsupportedError
from audit_cli.metrics import Z95, classes_of, paired_drop, predict
from audit_cli.repairs.belief import lost
from audit_cli.types import Context, TrustedData

LEAST_DISAGREEMENT = 0.01  # ours: no repair that removed a backdoor changed fewer answers, see fixtures/results/repair
STEP = 1 / 32  # ours: of a side, that a view of an image is moved by
ROUNDING = 1e-9
MOST = 2**25  # logits that are kept; bounds the memory
FIT_SHARE = 0.5  # ours: share of the trusted images a repair may use; the rest measures


class View(NamedTuple):
    """An image moved down and right by so many steps, in the mirror."""

    down: int
    right: int
    mirrored: bool


STILL_AND_MOVED = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))
VIEWS = tuple(View(*steps, mirrored) for mirrored in (False, True) for steps in STILL_AND_MOVED)


def half_width(n: int, disagreement: float, z: float = Z95) -> float:
    """Half-width of the 95 % interval of a paired drop on n images, as a fraction."""
    return z * math.sqrt(n * disagreement + 2) / (n + 2)


def images_needed(drop: float, disagreement: float = LEAST_DISAGREEMENT, z: float = Z95) -> int:
    """The smallest holdout on which `half_width` is at most `drop`: the positive root in n + 2, rounded up."""
    b = z * z * disagreement
    root = (b + math.sqrt(b * b + 8 * (1 - disagreement) * z * z * drop * drop)) / (2 * drop * drop)
    return max(1, math.ceil(root - 2 - 1e-9))


class Cost(NamedTuple):
    """Clean accuracy on a holdout before and after a repair, in [0, 1], over the views of every image; the paired drop
    with its 95 % interval, which also weighs how sure the models are and need not be the difference; d; and the views,
    on which the pivot is as good."""

    before: float
    after: float
    drop: tuple[float, float, float]
    disagreement: float
    views: tuple[View, ...] = VIEWS[:1]

    def exceeds(self, limit: float) -> bool:
        """Is more lost than `limit`? A mean of shares can come out a rounding error above what it is."""
        return self.drop[0] > limit + ROUNDING


def cost(pivot: Classifier, repaired: Classifier, holdout: TrustedData, context: Context) -> Cost:
    """What `repaired` has lost against `pivot`; both on the context's device. A view on which the pivot is clearly
    worse than on the images as they are is left out: it was not trained for that."""
    right, old = _answers(pivot, VIEWS, holdout, context)
    usable = [k for k in range(len(VIEWS)) if paired_drop(right[0] - right[k])[1] <= 0]
    views = tuple(VIEWS[k] for k in usable)
    still, new = _answers(repaired, views, holdout, context)
    right = right[usable]
    less = _lost([old[k] for k in usable] if old else [], new, holdout.labels, (right - still).mean(0))
    return Cost(float(right.mean()), float(still.mean()), paired_drop(less), float(less.square().mean()), views)


def _lost(old: Sequence[Tensor], new: Sequence[Tensor], labels: Tensor, counted: Tensor) -> Tensor:
    """`lost` from logits on views; what is `counted` (N,) of right answers where there are none, or where it
    contradicts them, since logits need not tell how sure a model may be."""
    if not (old and new and all(bool(outputs.isfinite().all()) for outputs in (*old, *new))):
        return counted
    less = lost(torch.stack(tuple(old)), torch.stack(tuple(new)), labels)
    _, low, high = paired_drop(counted)
    return less if low <= float(less.mean()) <= high else counted


def viewed(images: Tensor, view: View) -> Tensor:
    """Images (N, C, H, W) moved by `STEP` of a side, a pixel at least, where the border repeats, and mirrored."""
    down, right, mirrored = view
    if down or right:
        H, W = images.shape[-2:]
        dy, dx = max(1, round(STEP * H)), max(1, round(STEP * W))
        top, left = dy * (1 - down), dx * (1 - right)
        images = F.pad(images, (dx, dx, dy, dy), mode="replicate")[..., top : top + H, left : left + W]
    return images.flip(-1) if mirrored else images


def _answers(
    classifier: Classifier, views: Sequence[View], holdout: TrustedData, context: Context
) -> tuple[Tensor, list[Tensor]]:
    """(V, N) 1 where it is right, and the logits (N, K) on each view; none where they are more than `MOST` numbers:
    with so many images counting is sure enough."""
    rights, logits = [], []
    for view in views:
        outputs = predict(classifier, viewed(holdout.images, view), context)
        rights.append((classes_of(outputs) == holdout.labels).double())
        if len(views) * outputs.numel() <= MOST:
            logits.append(outputs)
    return torch.stack(rights), logits


def divide(
    trusted: TrustedData, max_drop: float, min_per_class: int, generator: torch.Generator, min_images: int = 0
) -> tuple[TrustedData, TrustedData]:
    """Trusted images for the repair and for judging it.

    Raises UnsupportedError, which ends as INCONCLUSIVE, when a class has too few images for both parts or the second
    part cannot resolve `max_drop` or is smaller than the `min_images` of an audit; the message says how many are
    needed.
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
    needed = max(images_needed(max_drop), min_images)
    if len(holdout) < needed:
        whole = math.ceil(needed / (1 - FIT_SHARE)) + len(trusted.class_names)  # every class is rounded up in `fit`
        wanted = f"a drop of {100 * max_drop:g} points cannot be verified"
        if needed > images_needed(max_drop):
            wanted = "the repaired model cannot be audited again as the policy demands"
        raise UnsupportedError(
            f"{wanted} on {len(holdout)} held-out images; {needed} are needed, so about {whole} trusted images, where "
            f"there are {len(trusted)}"
        )
    return fit, holdout
