"""The verdict as JSON: the artefact of record, checked against rules/verdict.schema.json before it leaves."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from audit_cli.errors import AuditError
from audit_cli.report.sanitise import clean
from audit_cli.resources import violations

if TYPE_CHECKING:
    from audit_cli.types import Verdict


def render(verdict: Verdict) -> str:
    """Pure ASCII, indented. Raises AuditError when the document breaks the schema or holds NaN or infinity."""
    if problems := violations(verdict.document, "verdict"):
        raise AuditError(f"the verdict breaks its own schema, so it was not written: {clean(problems[0], 300)}")
    return json.dumps(verdict.document, indent=2, allow_nan=False) + "\n"
