"""Scores against the same class's scores on clean models, as a calibration compares them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from audit_cli.calibration import LEAST, RULE, standard
from audit_cli.games.config import CLEAN

BY_CLASS = f"{RULE} by class"  # the name of the statistic in tables
Cells = Sequence[Mapping[str, Any]]


def with_by_class(cells: Cells) -> list[Mapping[str, Any]]:
    """The cells of one detector, with every BD001 score also in deviations from the clean models' mean for its class
    and family. A clean model is compared with the others; nothing is fitted on poisoned ones. Unchanged when fewer than
    three clean models are there."""
    keys = sorted({key for cell in cells for key in cell["scores"] if key.startswith(f"{RULE}/")})
    classes = sorted({c for cell in cells for key in keys for c in cell["scores"].get(key, {})})
    logs = torch.stack([_logs(cell, keys, classes) for cell in cells]) if keys else torch.empty(0)
    clean = torch.tensor([cell["attack"] == CLEAN for cell in cells])
    if not keys or int(clean.sum()) < 3:
        return list(cells)
    found: list[Mapping[str, Any]] = []
    for k, cell in enumerate(cells):
        others = clean.clone()
        others[k] = False
        z = standard(logs[k], logs[others])
        own = {key.replace(RULE, BY_CLASS): _row(z[f].tolist(), classes) for f, key in enumerate(keys)}
        found.append({**cell, "scores": {**cell["scores"], **own}})
    return found


def _row(values: Sequence[float], classes: Sequence[str]) -> dict[str, list[float | None]]:
    """As a cell has it: class -> [score, size], the latter unknown."""
    return {c: [value, None] for c, value in zip(classes, values, strict=True) if not math.isnan(value)}


def _logs(cell: Mapping[str, Any], keys: Sequence[str], classes: Sequence[str]) -> Tensor:
    """(families, classes), NaN where the cell has no score."""
    rows = [[cell["scores"].get(key, {}).get(c, [math.nan])[0] for c in classes] for key in keys]
    return torch.tensor(rows, dtype=torch.float64).clamp_min(LEAST).log()
