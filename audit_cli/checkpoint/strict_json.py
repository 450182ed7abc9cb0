"""JSON as a format for hostile hands: one meaning per document, or a refusal.

Python's reader takes the last of two equal keys, accepts NaN and Infinity, turns 1e999 into infinity and lets lone
surrogates through. Another reader of the same file would see something else than what was audited, so all are refused.
"""

from __future__ import annotations

import json
import math

from audit_cli.errors import CheckpointError
from audit_cli.report.sanitise import clean

DEPTH_CAP = 16  # levels of nesting; a composite model's config has 4


def parse(data: bytes, where: str) -> object:
    """The document in `data`, UTF-8 without a byte-order mark. Raises CheckpointError naming the file `where`."""
    try:
        document: object = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
        _bounded(document, DEPTH_CAP)
        json.dumps(document, ensure_ascii=False).encode("utf-8")  # fails on a lone surrogate
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeError are ValueErrors
        reason = "nested too deeply" if isinstance(error, RecursionError) else clean(str(error), 120)
        raise CheckpointError(f"{clean(where)}: not strict JSON ({reason}); export the checkpoint again") from error
    return document


def parse_object(data: bytes, where: str) -> dict[str, object]:
    """As `parse`, for a document that must be an object."""
    document = parse(data, where)
    if not isinstance(document, dict):
        raise CheckpointError(f"{clean(where)}: not a JSON object; export the checkpoint again")
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document: dict[str, object] = {}
    for key, value in pairs:
        if key in document:
            raise ValueError(f"key `{key}` appears twice")
        document[key] = value
    return document


def _bounded(value: object, depth: int) -> None:
    if isinstance(value, dict | list):
        if depth == 0:
            raise RecursionError
        for item in value.values() if isinstance(value, dict) else value:
            _bounded(item, depth - 1)


def _no_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"number {digits} is out of range")
    return value
