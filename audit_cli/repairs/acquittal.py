"""Is what convicted a model without a trigger gone after the repair?

Where clean models decide (calibration/), a class may be convicted by how readily it is answered under random changes
(detectors/profile.py). There is no trigger then whose success could be measured again. But the change can: a repaired
network must answer the class no more readily under it than clean ones do, on images the repair has not seen. A class
that a trigger convicts is asked by the trigger: the rise there need not be the trigger's trace, and may outlast it
(fixtures/results/repair.md).

Only under the change. What the class is like on unchanged images is the pivot's, which a repair holds on to, so a
repaired network stays odd among clean ones, and a rescan is judged by thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

from audit_cli.calibration import Calibration, named, scores_of
from audit_cli.classifier import Classifier
from audit_cli.detectors.calibrated import answers
from audit_cli.detectors.profile import Profile
from audit_cli.repairs.accusation import risen
from audit_cli.report.sanitise import clean
from audit_cli.types import Context, Finding, TrustedData


def asked_again(convicting: Sequence[Finding]) -> list[tuple[Finding, str]]:
    """The `convicting` findings that clean models decided and a random change can be asked about again, each with the
    change; of classes that no trigger convicts."""
    triggered = {finding.target_class for finding in convicting if finding.trigger}
    told = [(finding, change) for finding, change in risen(convicting) if finding.p_value is not None]
    return [(finding, change) for finding, change in told if finding.target_class not in triggered]


def still_risen(
    convicting: Sequence[Finding],
    repaired: Classifier,
    holdout: TrustedData,
    calibration: Calibration | None,
    alpha: float | None,
    context: Context,
) -> list[str]:
    """What of the `convicting` findings a random change still shows among the calibration's clean models, a line each;
    none where no random change convicted."""
    profile = Profile()
    told = asked_again(convicting)
    if not told or calibration is None or alpha is None:
        return []
    scores = scores_of(answers(profile, repaired, holdout, context))
    lines = []
    for finding, change in told:
        family, name = f"{profile.name}_{change}", finding.target_name or ""
        p = calibration.only({family}).p_values(scores).get((family, named(name)), 1.0)
        if p <= alpha:
            lines.append(
                f"random {change} still makes class {clean(name, 60)} more likely than on clean models "
                f"(p-value {p:.2g}, {alpha:.2g} accepted)"
            )
    return lines
