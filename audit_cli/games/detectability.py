"""The detectability game: can a detector tell poisoned models from clean ones?

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671 (Algorithm 2). The attacker's m poisoned samples are in a training set or they are
not; the defender sees the model and r trusted images and gives a score. The result is the area under the ROC curve of
that score over a balanced set of models.

A cell is one (victim, detector): the scores of every rule, trigger family and class, and what each family cost. The
tables are made from cells. With `repeats`, the first victims are scored again under other seeds of the detector: does
it say the same twice?

Differs from the paper: one clean population serves all attacks, as every victim is trained the same way otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from audit_cli.detectors import DETECTORS
from audit_cli.games.cells import Cell, Facts
from audit_cli.games.config import CLEAN
from audit_cli.games.recipes import Recipe
from audit_cli.games.zoo import Zoo
from audit_cli.types import Finding

SEEDS = 100_000  # between a victim's seed and the next repeat's: more than a population has victims


def detectability(
    zoo: Zoo,
    recipes: Sequence[Recipe],
    detectors: Sequence[str],
    repeated: int = 0,
    repeats: int = 1,
    only_planted: bool = False,
) -> list[Cell]:
    """A cell for every victim and detector, victim by victim; then the repeats of the `repeated` first victims of every
    population and count. only_planted: the cells of victims whose attack did not take have no scores."""

    def cell(recipe: Recipe, detector: str, turn: int) -> Cell:
        suffix = f".r{turn}" if turn else ""
        return Cell(f"{recipe.name}.{detector}{suffix}", lambda: scored(zoo, recipe, detector, turn, only_planted))

    cells = [cell(recipe, detector, 0) for recipe in recipes for detector in detectors]
    again = [recipe for recipe in recipes if 0 <= recipe.seed - zoo.context.seed < repeated]
    turns = range(1, repeats)
    return cells + [cell(recipe, name, turn) for turn in turns for recipe in again for name in detectors]


def scored(zoo: Zoo, recipe: Recipe, detector: str, turn: int = 0, only_planted: bool = False) -> Facts:
    """The detector's findings on one victim. turn: 0, or which repeat it is, whose seed is another. only_planted: a
    victim whose attack did not take has none."""
    victim = zoo.victim(recipe)
    context = replace(zoo.context, seed=recipe.seed + SEEDS * turn)
    began, cpu = time.monotonic(), time.process_time()
    skipped = only_planted and recipe.attack != CLEAN and not victim.planted
    trusted = zoo.data.trusted_of(recipe.seed)
    findings = [] if skipped else DETECTORS[detector]()(victim.classifier, trusted, context)
    told = facts_of(findings)
    took, worked = time.monotonic() - began, time.process_time() - cpu
    return victim.facts() | {
        "game": "detectability",
        "detector": detector,
        "turn": turn,
        "trusted": len(trusted),
        **told,
        "seconds": round(took, 2),
        "cpu_seconds": round(worked, 2),
    }


def facts_of(findings: Iterable[Finding]) -> Facts:
    """What a cell says of a detector's findings."""
    findings, costs = clocked(findings)
    scores: dict[str, dict[str, list[float | None]]] = {}
    pairs: dict[str, dict[str, dict[str, float]]] = {}
    for finding in findings:
        if finding.target_class is None and finding.rule_id == "BD107":
            continue
        row = scores.setdefault(_key(finding), {})
        row[str(finding.target_class)] = [round(finding.score, 4), _rounded(finding.trigger_norm)]
        if finding.by_source:
            by_source = {name: round(score, 4) for name, score in finding.by_source.items()}
            pairs.setdefault(_key(finding), {})[str(finding.target_class)] = by_source
    return {
        "scores": scores,  # rule/family -> class -> [score, size of the trigger]
        "pairs": pairs,  # rule/family -> class -> name of a source class -> score
        "costs": costs,  # rule/family -> CPU seconds until its first finding
    }


def clocked(findings: Iterable[Finding]) -> tuple[list[Finding], dict[str, float]]:
    """All findings, and the CPU seconds from one rule and family to the next: detectors work before they speak."""
    told: list[Finding] = []
    costs: dict[str, float] = {}
    last = time.process_time()
    for finding in findings:
        now = time.process_time()
        costs[_key(finding)] = round(costs.get(_key(finding), 0.0) + now - last, 2)
        last = now
        told.append(finding)
    return told, costs


def _key(finding: Finding) -> str:
    return "/".join(filter(None, (finding.rule_id, finding.family)))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
