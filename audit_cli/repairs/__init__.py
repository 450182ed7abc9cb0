"""Repairs: each returns a new classifier and never touches its input."""

from audit_cli.repairs.feature_shift import FeatureShift
from audit_cli.repairs.fine_pruning import FinePruning
from audit_cli.repairs.nad import NAD
from audit_cli.repairs.neural_cleanse import NeuralCleanse
from audit_cli.repairs.pivotal_tuning import PivotalTuning
from audit_cli.repairs.retraining import CleanRetraining
from audit_cli.repairs.sharpness_aware import SharpnessAware
from audit_cli.repairs.unlearning import Unlearning
from audit_cli.repairs.watch import WatchedRepair
from audit_cli.repairs.weight_decay import WeightDecay

REPAIRS: dict[str, type[WatchedRepair]] = {
    "clean_retraining": CleanRetraining,
    "feature_shift": FeatureShift,
    "fine_pruning": FinePruning,
    "nad": NAD,
    "neural_cleanse": NeuralCleanse,
    "pivotal_tuning": PivotalTuning,
    "sharpness_aware": SharpnessAware,
    "unlearning": Unlearning,
    "weight_decay": WeightDecay,
}
