"""Scores against the same class's scores on clean models, as a calibration compares them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from audit_cli.calibration import LEAST, RULE, conformal, standard
from audit_cli.games.config import CLEAN

BY_CLASS = f"{RULE} by class"  # the name of the statistic in tables
LEAST_MODELS = 3  # to compare with
Cells = Sequence[Mapping[str, Any]]


def with_by_class(cells: Cells, reference: Cells = ()) -> list[Mapping[str, Any]]:
    """The cells of one detector, with every BD001 score also in deviations from the clean models' mean for its class
    and family, and `p_value`, the model's smallest. The clean models are those of `reference`, or where that is empty
    those among the cells, each model once; no cell is compared with its own model. Nothing is fitted on poisoned ones.
    Unchanged when fewer than three clean models are there."""
    known = [cell for cell in (reference or cells) if cell["attack"] == CLEAN and not cell.get("turn")]
    keys = sorted({key for cell in (*cells, *known) for key in cell["scores"] if key.startswith(f"{RULE}/")})
    classes = sorted({c for cell in (*cells, *known) for key in keys for c in cell["scores"].get(key, {})})
    if not keys or len(known) < LEAST_MODELS:
        return list(cells)
    logs = torch.stack([_logs(cell, keys, classes) for cell in known])
    found: list[Mapping[str, Any]] = []
    for cell in cells:
        own = _logs(cell, keys, classes)
        others = logs[[other["victim"] != cell["victim"] for other in known]]
        z, p = standard(own, others), conformal(own, others)
        rows = {key.replace(RULE, BY_CLASS): _row(z[f].tolist(), classes) for f, key in enumerate(keys)}
        p_value = float(p.nan_to_num(1.0).min())
        found.append({**cell, "scores": {**cell["scores"], **rows}, "p_value": p_value})
    return found


def _row(values: Sequence[float], classes: Sequence[str]) -> dict[str, list[float | None]]:
    """As a cell has it: class -> [score, size], the latter unknown."""
    return {c: [value, None] for c, value in zip(classes, values, strict=True) if not math.isnan(value)}


def _logs(cell: Mapping[str, Any], keys: Sequence[str], classes: Sequence[str]) -> Tensor:
    """(families, classes), NaN where the cell has no score."""
    rows = [[cell["scores"].get(key, {}).get(c, [math.nan])[0] for c in classes] for key in keys]
    return torch.tensor(rows, dtype=torch.float64).clamp_min(LEAST).log()
