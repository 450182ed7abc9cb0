"""Rows as Markdown, for a README and for the terminal, and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from audit_cli.games.summary import Row


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table; columns in order of first appearance, empty where a row has no value, a dash where it is None:
    where a number would mean nothing."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    cells = [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(map(len, (name, *column))) for name, *column in zip(columns, *cells, strict=True)]
    lines = [columns, ["-" * width for width in widths], *cells]
    padded = (" | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"| {line} |" for line in padded)


def as_json(tier: str, tables: Mapping[str, Sequence[Row]]) -> str:
    """Tables by name; null where there is no number to tell."""

    def told(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    rows = {name: [{key: told(value) for key, value in row.items()} for row in of] for name, of in tables.items()}
    return json.dumps({"tier": tier, **rows}, indent=1, allow_nan=False)


def _text(value: object) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
    return "–" if value is None else str(value)
