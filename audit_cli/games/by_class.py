"""Scores against the same class's scores on clean models, as a calibration compares them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from audit_cli.calibration import LEAST, RULE, from_source
from audit_cli.conformal import FROM, conformal, each_standard, levelled, standard
from audit_cli.detectors.shift import Shift
from audit_cli.games.config import CLEAN
from audit_cli.policy import Policy

BY_CLASS = f"{RULE} by class"  # the name of the statistic in tables
LEAST_MODELS = 3  # to compare with
Cells = Sequence[Mapping[str, Any]]


def with_by_class(cells: Cells, reference: Cells = ()) -> list[Mapping[str, Any]]:
    """The cells of one detector, with every BD001 score also in deviations from the clean models' mean for its class
    and family, levelled as in a calibration, where there are scores for single source classes the largest of them;
    `p_value`, the model's smallest; and `named`, the class with the largest deviation, of a trigger's where one
    convicts, as a verdict names it. The clean models are those of `reference`, or where that is empty those among the
    cells, each model once; no cell is compared with its own model. Nothing is fitted on poisoned ones.
    Unchanged when fewer than three clean models are there."""
    known = [cell for cell in (reference or cells) if cell["attack"] == CLEAN and not cell.get("turn")]
    keys = sorted({key for cell in (*cells, *known) for key in calibrated_scores(cell)})
    classes = sorted({c for cell in (*cells, *known) for row in calibrated_scores(cell).values() for c in row})
    if not keys or len(known) < LEAST_MODELS:
        return list(cells)
    logs = torch.stack([_logs(cell, keys, classes) for cell in known])
    families = [key.partition(FROM)[0] for key in keys]
    every = each_standard(logs)
    found: list[Mapping[str, Any]] = []
    for cell in cells:
        own = _logs(cell, keys, classes)
        others = logs[[other["victim"] != cell["victim"] for other in known]]
        members = every if len(others) == len(logs) else each_standard(others)
        z = levelled(standard(own, others)[None], members, keys)[0]
        p = conformal(own, others, keys)
        largest = {key: z[[other == key for other in families]].nan_to_num(-torch.inf).amax(0) for key in families}
        rows = {key.replace(RULE, BY_CLASS): _row(values.tolist(), classes) for key, values in largest.items()}
        p_value = float(p.nan_to_num(1.0).min())
        told = {"p_value": p_value, "named": _named(z, p, keys, classes)}
        found.append({**cell, "scores": {**cell["scores"], **rows}, **told})
    return found


def _named(z: Tensor, p: Tensor, keys: Sequence[str], classes: Sequence[str]) -> int:
    """The class with the largest deviation z (families, classes); where triggers convict, among these alone."""
    triggers = torch.tensor([not key.startswith(f"{RULE}/{Shift.name}") for key in keys])[:, None]
    convicting = triggers & (p <= _alpha())
    among = z.masked_fill(~convicting, -torch.inf) if bool(convicting.any()) else z
    return int(classes[int(among.nan_to_num(-torch.inf).amax(0).argmax())])


@cache
def _alpha() -> float:
    """The default policy's accepted false-alarm rate."""
    return Policy.load("default").rules[RULE].alpha or 0.0


def calibrated_scores(cell: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """rule/family -> class -> score of BD001; a family's scores for one source class are a family of their own, as in a
    calibration."""
    found = {
        key: {c: values[0] for c, values in row.items()}
        for key, row in cell["scores"].items()
        if key.startswith(f"{RULE}/")
    }
    for key, targets in cell.get("pairs", {}).items():
        for c, by_source in targets.items():
            for source, score in by_source.items():
                found.setdefault(from_source(key, source), {})[c] = score
    return found


def _row(values: Sequence[float], classes: Sequence[str]) -> dict[str, list[float | None]]:
    """As a cell has it: class -> [score, size], the latter unknown."""
    return {c: [value, None] for c, value in zip(classes, values, strict=True) if math.isfinite(value)}


def _logs(cell: Mapping[str, Any], keys: Sequence[str], classes: Sequence[str]) -> Tensor:
    """(families, classes), NaN where the cell has no score."""
    scores = calibrated_scores(cell)
    rows = [[scores.get(key, {}).get(c, math.nan) for c in classes] for key in keys]
    return torch.tensor(rows, dtype=torch.float64).clamp_min(LEAST).log()
