"""Racing: every class is searched a little, the most suspicious ones are searched to the end.

No class is dropped before it was optimised: the first rung runs all of them. What goes on is the classes with the
smallest triggers so far, and a random sample of the others, searched exactly as long: the median trigger size that the
smallest one is compared with comes from that sample, so that both have had the same effort.
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

    steps: int = 150  # ours: smallest sizes change by a few percent after it on small CIFAR-10 ResNets
    first: int = 50  # ours: steps of the first rung, when there is one
    keep: int = 16  # ours: most suspicious classes that go on
    sample: int = 16  # ours: random others that go on, for the median

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.steps or self.keep < 1 or self.sample < 1:
            raise ValueError(f"{self}: 0 < first <= steps, keep and sample at least 1")

    def run(
        self, suspect: Classifier, family: TriggerFamily, trusted: TrustedData, search: Search, context: Context
    ) -> State:
        """The state of the classes that ran to the end."""
        classes = torch.arange(suspect.num_classes)
        state = search.start(family, classes, trusted.shape, context)
        context.progress.stage(f"{family.name} triggers", self.steps)
        if len(classes) <= self.keep + self.sample:
            return search.run(suspect, family, state, trusted, self.steps, context)
        state = search.run(suspect, family, state, trusted, self.first, context)
        state = state.take(self._survivors(state, context))
        return search.run(suspect, family, state, trusted, self.steps - self.first, context)

    def _survivors(self, state: State, context: Context) -> Tensor:
        """Rows of the `keep` smallest triggers (where none worked yet: highest success) and of `sample` others."""
        success = state.recent.mean(1)
        order = torch.argsort(
            torch.where(state.reached, state.best_size, state.best_size[state.reached].sum() + 2 - success)
        )
        rest = order[self.keep :]
        drawn = torch.randperm(len(rest), generator=context.generator(stream=4))[: self.sample]
        return torch.cat([order[: self.keep], rest[drawn.to(rest.device)]])
