"""Repairs: each returns a new classifier and never touches its input."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from audit_cli.errors import PolicyError
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


def construct(name: str, settings: Mapping[str, Mapping[str, float]]) -> WatchedRepair:
    """The repair `name` with the policy's `settings` of it, by repair. Raises PolicyError on ones it does not have or
    cannot take, for whatever repair they are."""
    made: dict[str, WatchedRepair] = {}
    for method, values in {name: {}, **settings}.items():
        if method not in REPAIRS:
            raise PolicyError(f"repair.settings.{method}: no such repair; expected one of {', '.join(REPAIRS)}")
        kinds = {field.name: str(field.type) for field in dataclasses.fields(cast(Any, REPAIRS[method]))}
        numbers = [key for key, kind in kinds.items() if kind in ("int", "float")]
        if unknown := [key for key in values if key not in numbers]:
            raise PolicyError(f"repair.settings.{method}: no number `{unknown[0]}`; expected {', '.join(numbers)}")
        try:
            made[method] = REPAIRS[method](**{k: int(v) if kinds[k] == "int" else float(v) for k, v in values.items()})
        except ValueError as error:
            raise PolicyError(f"repair.settings.{method}: {error}") from error
    return made[name]
