"""Scores against the same class's scores on clean models, as a calibration compares them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from audit_cli.calibration import LEAST, RULE, from_source
from audit_cli.conformal import conformal, each_standard, families_of, standard, statistic
from audit_cli.detectors.calibrated import APART
from audit_cli.games.config import CLEAN

BY_CLASS = f"{RULE} by class"  # the name of the statistic in tables
LEAST_MODELS = 3  # to compare with
Cells = Sequence[Mapping[str, Any]]


def with_by_class(
    cells: Cells, reference: Cells = (), families: Collection[str] | None = None
) -> list[Mapping[str, Any]]:
    """The cells of one detector with what a calibration of clean models would say of them: as a score of the rule
    BY_CLASS, every class's statistic; `p_value`, the model's smallest; `named`, the class with the largest statistic,
    as a verdict names it; and `among`, is it one of those clean models itself?
    families: those that count; None for those that a calibration compares. A cell is compared in those that it has
    been scored in: one of an earlier version may lack some.

    The clean models are those of `reference`, or where that is empty those among the cells, each model once; no cell is
    compared with its own model. Nothing is fitted on poisoned ones. Unchanged when fewer than three clean models are
    there."""
    known = clean_models(reference or cells)
    scored = [families_of(sorted(calibrated_scores(cell, families))) for cell in cells]
    kinds = list(dict.fromkeys(filter(None, scored)))
    if len(kinds) > 1:
        scored = [kind or kinds[0] for kind in scored]  # cells without any score
        apart = {kind: iter(with_by_class(_of(cells, scored, kind), known, kind)) for kind in kinds}
        return [next(apart[kind]) for kind in scored]
    families = next(iter(kinds), families)
    rows = sorted({row for cell in (*cells, *known) for row in calibrated_scores(cell, families)})
    classes = sorted(
        {c for cell in (*cells, *known) for row in calibrated_scores(cell, families).values() for c in row}
    )
    if not rows or len(known) < LEAST_MODELS:
        return list(cells)
    logs = torch.stack([log_scores(cell, families, rows, classes) for cell in known])
    every = each_standard(logs)
    found: list[Mapping[str, Any]] = []
    for cell in cells:
        own = log_scores(cell, families, rows, classes)
        others = logs[[other["victim"] != cell["victim"] for other in known]]
        members = every if len(others) == len(logs) else each_standard(others)
        t = statistic(standard(own, others)[None], members, rows)[0].nan_to_num(-torch.inf)
        compared = conformal(own, others, rows)
        oddest = int(compared.t.nan_to_num(-torch.inf).amax(0).argmax())
        told = {"p_value": float(compared.p.nan_to_num(1.0).min()), "named": int(classes[oddest])}
        told |= {"among": len(others) < len(logs)}
        found.append({**cell, "scores": {**cell["scores"], BY_CLASS: _row(t.amax(0).tolist(), classes)}, **told})
    return found


def _of(cells: Cells, scored: Sequence[tuple[str, ...]], kind: tuple[str, ...]) -> Cells:
    return [cell for cell, own in zip(cells, scored, strict=True) if own == kind]


def clean_models(cells: Cells) -> list[Mapping[str, Any]]:
    """The cells of clean models, of each model the first; runs under other seeds are left out."""
    found: dict[str, Mapping[str, Any]] = {}
    for cell in cells:
        if cell["attack"] == CLEAN and not cell.get("turn"):
            found.setdefault(cell["victim"], cell)
    return list(found.values())


def families_compared(cells: Cells) -> tuple[str, ...]:
    """The families that a calibration made of such cells compares."""
    keys = dict.fromkeys(key for cell in cells for key in cell["scores"])
    return tuple(f for rule, _, f in (key.partition("/") for key in keys) if rule == RULE and f not in APART)


def calibrated_scores(cell: Mapping[str, Any], families: Collection[str] | None = None) -> dict[str, dict[str, float]]:
    """family -> class -> score of BD001, of the `families` or of those in a calibration; scores for one source class
    are a row of their own, as there."""
    found: dict[str, dict[str, float]] = {}
    for key, row in cell["scores"].items():
        rule, _, family = key.partition("/")
        if rule == RULE and (family not in APART if families is None else family in families):
            found[family] = {c: values[0] for c, values in row.items()}
            for c, by_source in cell.get("pairs", {}).get(key, {}).items():
                for source, score in by_source.items():
                    found.setdefault(from_source(family, source), {})[c] = score
    return found


def _row(values: Sequence[float], classes: Sequence[str]) -> dict[str, list[float | None]]:
    """As a cell has it: class -> [score, size], the latter unknown."""
    return {c: [value, None] for c, value in zip(classes, values, strict=True) if math.isfinite(value)}


def log_scores(
    cell: Mapping[str, Any], families: Collection[str] | None, rows: Sequence[str], classes: Sequence[str]
) -> Tensor:
    """(rows, classes), NaN where the cell has no score."""
    scores = calibrated_scores(cell, families)
    values = [[scores.get(row, {}).get(c, math.nan) for c in classes] for row in rows]
    return torch.tensor(values, dtype=torch.float64).clamp_min(LEAST).log()
