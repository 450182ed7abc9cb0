"""Which finding is more suspicious? One order for a verdict's reasons, its headline and what a repair is told."""

from __future__ import annotations

Rank = tuple[bool, bool, float]


def rank(score: float, threshold: float, nonconformity: float | None, *, triggered: bool) -> Rank:
    """A key to sort findings by: larger is more suspicious. nonconformity: None where no clean models were compared
    with; triggered: has the finding a trigger?

    Beside clean models: how odd the class is among them, in all its families. Before these comes what a threshold alone
    judges: triggers, then the others, whose features may be of a class that the target moves to; each by how far it is
    above its threshold, since families differ in that."""
    if nonconformity is not None:
        return False, False, nonconformity
    return True, triggered, score / threshold if threshold > 0 else score - threshold
