"""Detectors: each measures a suspect and returns findings; none of them judges."""

from collections.abc import Callable

from audit_cli.detectors.ban import BAN
from audit_cli.detectors.calibrated import Calibrated
from audit_cli.detectors.encoder import Collapse
from audit_cli.detectors.margin import Margin
from audit_cli.detectors.neural_cleanse import NeuralCleanse
from audit_cli.detectors.published import Published
from audit_cli.detectors.weights import Weights
from audit_cli.types import Detector

DETECTORS: dict[str, Callable[[], Detector]] = {
    "ban": BAN,
    "calibrated": Calibrated,
    "compared": lambda: Calibrated().compared,  # what a calibration compares, of BD001
    "encoder": Collapse,
    "margin": Margin,
    "neural_cleanse": NeuralCleanse,
    "published": Published,
    "sizes": lambda: Calibrated(reference=None),  # the default without its reference model: BD001 alone
    "weights": Weights,
}
