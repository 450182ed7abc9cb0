"""What scores do clean models of this kind get? A small JSON file that gives a score its p-value (conformal.py).

"Of the same kind" is a `Domain`, told from architecture, image size and class names, with an accuracy like the clean
models'.
"""

from audit_cli.calibration.domain import Domain, kind, named
from audit_cli.calibration.files import candidates, read
from audit_cli.calibration.models import LEAST, Calibration, Clean, Scores
from audit_cli.calibration.scores import (
    ONLY_COMPARED,
    RULE,
    clean_model,
    fingerprints,
    from_source,
    rounded,
    scores_of,
    with_p_values,
)

__all__ = [
    "LEAST",
    "ONLY_COMPARED",
    "RULE",
    "Calibration",
    "Clean",
    "Domain",
    "Scores",
    "candidates",
    "clean_model",
    "fingerprints",
    "from_source",
    "kind",
    "named",
    "read",
    "rounded",
    "scores_of",
    "with_p_values",
]
