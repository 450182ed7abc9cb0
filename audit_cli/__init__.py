"""audit-cli: may this image model be deployed?

    from audit_cli import Policy, load, repair, scan

Names are imported when first used, so that commands which need no model start without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from audit_cli.audit import load, scan
    from audit_cli.mend import repair
    from audit_cli.policy import Policy
    from audit_cli.types import Verdict

_HOMES = {
    "Policy": "audit_cli.policy",
    "Verdict": "audit_cli.types",
    "load": "audit_cli.audit",
    "repair": "audit_cli.mend",
    "scan": "audit_cli.audit",
}

__all__ = ["Policy", "Verdict", "load", "repair", "scan"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
