"""Racing: every class is searched a little, the most suspicious ones are searched to the end.

No class is dropped before it was optimised: the first rung runs all of them. What goes on is the classes with the
smallest triggers so far, and a random sample of all classes, searched exactly as long: what ordinary classes need is
told from that sample, so that the smallest trigger and the ordinary ones have had the same effort.
With few classes nothing is dropped, and the race is a plain search.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.inversion.engine import Search, State
from audit_cli.types import Context, TriggerFamily, TrustedData


@dataclass(frozen=True)
class Race:
    """A search of `steps` steps for up to `keep` + `sample` classes; more classes first run a short rung."""

    steps: int = 300  # ours
    first: int = 60  # ours: steps of the first rung, when there is one
    keep: int = 16  # ours: classes with the smallest triggers, that go on
    sample: int = 16  # ours: random classes that go on

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.steps or self.keep < 1 or self.sample < 1:
            raise ValueError(f"{self}: 0 < first <= steps, keep and sample at least 1")

    def run(
        self, suspect: Classifier, family: TriggerFamily, trusted: TrustedData, search: Search, context: Context
    ) -> tuple[State, Tensor]:
        """The K classes that ran to the end, and which of them (K,) bool are a fair sample of all classes."""
        classes = torch.arange(suspect.num_classes)
        state = search.start(family, classes, trusted.shape, context)
        context.progress.stage(f"{family.name} triggers", self.steps)
        if len(classes) <= self.keep + self.sample:
            state = search.run(suspect, family, state, trusted, self.steps, context)
            return state, torch.ones_like(state.classes, dtype=torch.bool)
        state = search.run(suspect, family, state, trusted, self.first, context)
        sample = torch.randperm(len(classes), generator=context.generator(stream=4))[: self.sample].to(context.device)
        rows = torch.cat([smallest(state)[: self.keep], sample]).unique()
        state = search.run(suspect, family, state.take(rows), trusted, self.steps - self.first, context)
        return state, torch.isin(rows, sample)


def smallest(state: State) -> Tensor:
    """Rows (K,) by size, smallest first; those without a working trigger last, by success."""
    unreached = state.best_size[state.reached].sum() + 2 - state.recent.mean(1)
    return torch.argsort(torch.where(state.reached, state.best_size, unreached))
