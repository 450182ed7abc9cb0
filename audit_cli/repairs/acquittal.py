"""Is what convicted a model without a trigger gone after the repair?

Where clean models decide (calibration/), a class may be convicted by how readily it is answered under random changes
(detectors/profile.py). There is no trigger then whose success could be measured again. But the change can: a repaired
network must answer the class no more readily under it than clean ones do, on images the repair has not seen. A class
that a trigger convicts is asked by the trigger: the rise there need not be the trigger's trace, and may outlast it
(fixtures/results/repair.md).

Only under the change. What the class is like on unchanged images is the pivot's, which a repair holds on to, so a
repaired network stays odd among clean ones, and a rescan is judged by thresholds.

The clean models were scored on more images than are held out, and on few images a random change shows one thing in one
draw and another in the next. So every image is changed in several views (holdout.py), in each at random anew, and what
counts is the mean over them (fixtures/results/acquittal-study.json).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from audit_cli.calibration import LEAST, Calibration, Scores, named, scores_of
from audit_cli.classifier import Classifier
from audit_cli.detectors.calibrated import answers
from audit_cli.detectors.profile import Profile
from audit_cli.repairs.accusation import risen
from audit_cli.repairs.holdout import VIEWS, View, viewed
from audit_cli.report.sanitise import clean
from audit_cli.types import Context, Finding, TrustedData


def asked_again(convicting: Sequence[Finding]) -> list[tuple[Finding, str]]:
    """The `convicting` findings that clean models decided and a random change can be asked about again, each with the
    change; of classes that no trigger convicts."""
    triggered = {finding.target_class for finding in convicting if finding.trigger}
    told = [(finding, change) for finding, change in risen(convicting) if finding.p_value is not None]
    return [(finding, change) for finding, change in told if finding.target_class not in triggered]


class Shown(NamedTuple):
    """What a change still shows: p, the chance at most that a clean model shows the class as likely under it."""

    change: str
    name: str
    p: float


def shown_again(
    convicting: Sequence[Finding],
    repaired: Classifier,
    holdout: TrustedData,
    calibration: Calibration | None,
    context: Context,
    views: Sequence[View] = VIEWS[:1],
) -> list[Shown]:
    """What random changes show of the `convicting` findings among the calibration's clean models; nothing where none
    convicted. views: in which the held-out images are changed."""
    told = asked_again(convicting)
    if not told or calibration is None:
        return []
    scores = over_views(repaired, holdout, {change for _, change in told}, views, context)
    shown = []
    for finding, change in told:
        family, name = f"{Profile.name}_{change}", finding.target_name or ""
        p = calibration.only({family}).p_values(scores).get((family, named(name)), 1.0)
        shown.append(Shown(change, name, p))
    return shown


def still_risen(shown: Sequence[Shown], alpha: float | None) -> list[str]:
    """What of it speaks against a repair, a line each."""
    return [
        f"random {change} still makes class {clean(name, 60)} more likely than on clean models "
        f"(p-value {p:.2g}, {alpha:.2g} accepted)"
        for change, name, p in shown
        if alpha is not None and p <= alpha
    ]


def another_shows(shown: Sequence[Shown], alpha: float | None) -> bool:
    """Does a change that is not the oddest one of its class, the first, speak against a repair?"""
    others = [other for k, other in enumerate(shown) if any(before.name == other.name for before in shown[:k])]
    return bool(still_risen(others, alpha))


def over_views(
    classifier: Classifier, data: TrustedData, changes: Collection[str], views: Sequence[View], context: Context
) -> Scores:
    """What the profile scores under the `changes`, by family and class name: the geometric mean over the `views` of the
    images. The classifier is frozen and on the context's device."""
    profile = Profile()
    profile = replace(profile, changes=tuple(change for change in profile.changes if change.name in changes))
    each = []
    for k, view in enumerate(views):
        shown = replace(data, images=viewed(data.images, view))
        each.append(scores_of(answers(profile, classifier, shown, replace(context, seed=context.seed + k))))
    known = set.intersection(*map(set, each))
    return {key: math.exp(fmean(math.log(max(scores[key], LEAST)) for scores in each)) for key in sorted(known)}
