"""Looking on while a repair works: it cannot measure itself, for it is fitted to every image it sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from audit_cli.classifier import Classifier
from audit_cli.types import Context, TrustedData

Watch = Callable[[int, Classifier], None]  # called with (step, the model being repaired) after every update


def unwatched(step: int, classifier: Classifier) -> None:
    """Nobody watches."""


def after_step(watch: Watch, classifier: Classifier, offset: int = 0) -> Callable[[int], None]:
    """`watch` in the form the fit loop calls, about the model it trains in place; steps count from `offset`."""
    return lambda step: watch(offset + step, classifier)


class WatchedRepair(Protocol):
    """A Repair that tells `watch` after every step."""

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier: ...
