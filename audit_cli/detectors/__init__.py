"""Detectors: each measures a suspect and returns findings; none of them judges."""

from audit_cli.detectors.calibrated import Calibrated
from audit_cli.detectors.published import Published
from audit_cli.types import Detector

DETECTORS: dict[str, type[Detector]] = {
    "calibrated": Calibrated,
    "published": Published,
}
