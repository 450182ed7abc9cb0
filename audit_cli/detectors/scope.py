"""What an audit left out, measured like everything else, so that a policy can insist on it.

BD110: no calibration covers this kind of model. BD111: weight files beside the audited ones. BD112: trigger families
that were not searched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from audit_cli.report.sanitise import clean
from audit_cli.types import Finding

DETECTOR = "scope"
UNCALIBRATED = "BD110"


def scope(
    unaudited: Sequence[str], searched: Collection[str], families: Collection[str], uncalibrated: str | None
) -> list[Finding]:
    """unaudited: weight files left aside. searched, families: names of the trigger families, used and usual.
    uncalibrated: why no calibration holds; None where one does."""
    left_out = sorted(set(families) - set(searched))
    beside = ", ".join(clean(name, 60) for name in unaudited[:3]) + (" …" if len(unaudited) > 3 else "")
    return [
        Finding(
            UNCALIBRATED,
            float(uncalibrated is not None),
            "clean models of this kind have been scored"
            if uncalibrated is None
            else f"no calibration holds ({uncalibrated}), so nobody knows how often the thresholds fail a clean model; "
            "calibrate clean models of your own, or accept the thresholds with --policy thresholds",
            DETECTOR,
        ),
        Finding(
            "BD111",
            float(len(unaudited)),
            f"weight files beside the audited ones were not audited: {beside}"
            if unaudited
            else "no file was left aside",
            DETECTOR,
        ),
        Finding(
            "BD112",
            float(bool(left_out)),
            f"trigger families not searched: {', '.join(left_out)}"
            if left_out
            else "the usual trigger families were searched",
            DETECTOR,
        ),
    ]
