"""The ladder: repairs in the order they are tried, mildest first. Climbing stops at the first that passes its audit.

Every rung starts from the unrepaired model, so that what was lost on one is not lost for the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from audit_cli.classifier import Classifier
from audit_cli.repairs.unlearning import Unlearning
from audit_cli.repairs.watch import Watch, WatchedRepair, unwatched
from audit_cli.types import Context, TrustedData


@dataclass(frozen=True)
class Then:
    """One repair after another, each on the result of the one before; each counts its steps from 0 for the watcher."""

    repairs: tuple[WatchedRepair, ...]

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """The last repair's result; `pivot` is untouched."""
        for k, repair in enumerate(self.repairs):
            pivot = repair(pivot, trusted, replace(context, seed=context.seed + 100 * k), watch)
        return pivot


@dataclass(frozen=True)
class Rung:
    """A repair and what the verdict calls it."""

    name: str
    repair: WatchedRepair


LADDER: tuple[Rung, ...] = (
    Rung("unlearning", Unlearning()),
    Rung("thorough unlearning", Unlearning(left=0.5, rounds=8, starts=5, steps=300)),
)
