"""Detectors: each measures a suspect and returns findings; none of them judges."""

from collections.abc import Callable

from audit_cli.detectors.ban import BAN
from audit_cli.detectors.calibrated import Calibrated
from audit_cli.detectors.encoder import Collapse
from audit_cli.detectors.margin import Margin
from audit_cli.detectors.neural_cleanse import NeuralCleanse
from audit_cli.detectors.published import Published
from audit_cli.detectors.weights import Weights
from audit_cli.repairs.pivotal_tuning import PivotalTuning
from audit_cli.repairs.sharpness_aware import SharpnessAware
from audit_cli.repairs.weight_decay import WeightDecay
from audit_cli.types import Detector

# Ours: cheap ones, each of another kind.
REFERENCES = (PivotalTuning(steps=200), SharpnessAware(steps=100), WeightDecay(steps=200))

DETECTORS: dict[str, Callable[[], Detector]] = {
    "ban": BAN,
    "calibrated": Calibrated,
    "compared": lambda: Calibrated().compared,  # what a calibration compares, of BD001
    "encoder": Collapse,
    "gaps": lambda: Calibrated(references=REFERENCES),  # the default with BD002 beside BD001
    "margin": Margin,
    "neural_cleanse": NeuralCleanse,
    "published": Published,
    "quick": lambda: Calibrated().measured,  # what one pass over the images tells, beside clean models
    "sizes": Calibrated,  # what benches called it while the default had a reference model
    "weights": Weights,
}
