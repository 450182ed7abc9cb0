"""The ladder: repairs in the order they are tried, mildest first. Climbing stops at the first that passes its audit.

Every rung starts from the unrepaired model, so that what was lost on one is not lost for the next.
"""

from __future__ import annotations

from dataclasses import dataclass

from audit_cli.repairs.unlearning import Unlearning
from audit_cli.repairs.watch import WatchedRepair


@dataclass(frozen=True)
class Rung:
    """A repair and what the verdict calls it."""

    name: str
    repair: WatchedRepair


LADDER: tuple[Rung, ...] = (
    Rung("unlearning", Unlearning()),
    Rung("thorough unlearning", Unlearning(left=0.5, rounds=8, starts=5, steps=300)),
)
