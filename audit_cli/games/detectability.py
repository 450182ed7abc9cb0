"""The detectability game: can a detector tell poisoned models from clean ones?

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671 (Algorithm 2). The attacker's m poisoned samples are in a training set or they are
not; the defender sees the model and r trusted images and gives a score. The result is the area under the ROC curve of
that score over a balanced set of models.

A cell is one (victim, detector): the scores of every rule, trigger family and class. The tables are made from cells.

Differs from the paper: one clean population serves all attacks, as every victim is trained the same way otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from audit_cli.detectors import DETECTORS
from audit_cli.games.cells import Cell, Facts
from audit_cli.games.zoo import Recipe, Zoo


def detectability(zoo: Zoo, recipes: Sequence[Recipe], detectors: Sequence[str]) -> list[Cell]:
    """A cell for every victim and detector, victim by victim."""
    return [_cell(zoo, recipe, detector) for recipe in recipes for detector in detectors]


def _cell(zoo: Zoo, recipe: Recipe, detector: str) -> Cell:
    return Cell(f"{recipe.name}.{detector}", lambda: scored(zoo, recipe, detector))


def scored(zoo: Zoo, recipe: Recipe, detector: str) -> Facts:
    """The detector's findings on one victim."""
    victim = zoo.victim(recipe)
    context = replace(zoo.context, seed=recipe.seed)
    began, cpu = time.monotonic(), time.process_time()
    findings = list(DETECTORS[detector]()(victim.classifier, zoo.data.trusted, context))
    took, worked = time.monotonic() - began, time.process_time() - cpu
    scores: dict[str, dict[str, list[float | None]]] = {}
    for finding in findings:
        if finding.target_class is None and finding.rule_id == "BD107":
            continue
        row = scores.setdefault("/".join(filter(None, (finding.rule_id, finding.family))), {})
        row[str(finding.target_class)] = [round(finding.score, 4), _rounded(finding.trigger_norm)]
    return victim.facts() | {
        "game": "detectability",
        "detector": detector,
        "trusted": len(zoo.data.trusted),
        "scores": scores,  # rule/family -> class -> [score, size of the trigger]
        "seconds": round(took, 2),
        "cpu_seconds": round(worked, 2),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
