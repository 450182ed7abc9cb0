"""Where a search for triggers stands: a frozen value that searches continue and races cut and join."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from audit_cli.types import Trigger, TriggerFamily


@dataclass(frozen=True)
class State:
    """Where the search stands for K triggers; every tensor has K in front."""

    classes: Tensor  # (K,) int64, their targets
    parameters: dict[str, Tensor]
    moments: dict[str, tuple[Tensor, Tensor]]  # Adam's
    weight: Tensor  # (K,) on the size
    streak: Tensor  # (K,) successful (+) or failing (−) steps in a row
    recent: Tensor  # (K, patience) success of the last batches
    losses: Tensor  # (K, patience) mean cross-entropy of the last batches
    best: dict[str, Tensor]  # the smallest trigger so far that worked
    best_size: Tensor  # (K,) inf until one worked
    sources: Tensor | None = None  # (K,) int64, the class images are drawn from; None: all but the target
    step: int = 0

    def take(self, rows: Tensor) -> State:
        """The state of some of the classes."""
        return replace(
            self,
            classes=self.classes[rows],
            parameters={k: v[rows] for k, v in self.parameters.items()},
            moments={k: (m[rows], v[rows]) for k, (m, v) in self.moments.items()},
            weight=self.weight[rows],
            streak=self.streak[rows],
            recent=self.recent[rows],
            losses=self.losses[rows],
            best={k: v[rows] for k, v in self.best.items()},
            best_size=self.best_size[rows],
            sources=None if self.sources is None else self.sources[rows],
        )

    def join(self, other: State) -> State:
        """The classes of both, which are as many steps along and were given their sources alike."""
        moments = other.moments
        return replace(
            self,
            classes=torch.cat([self.classes, other.classes]),
            parameters={k: torch.cat([v, other.parameters[k]]) for k, v in self.parameters.items()},
            moments={
                k: (torch.cat([m, moments[k][0]]), torch.cat([v, moments[k][1]])) for k, (m, v) in self.moments.items()
            },
            weight=torch.cat([self.weight, other.weight]),
            streak=torch.cat([self.streak, other.streak]),
            recent=torch.cat([self.recent, other.recent]),
            losses=torch.cat([self.losses, other.losses]),
            best={k: torch.cat([v, other.best[k]]) for k, v in self.best.items()},
            best_size=torch.cat([self.best_size, other.best_size]),
            sources=None if self.sources is None or other.sources is None else torch.cat([self.sources, other.sources]),
        )

    def unproven(self, ease: float) -> State:
        """The same triggers, but what worked so far is forgotten: success on few images is no proof on more. The weight
        on the size is divided by `ease`, so that a trigger that was too small for more images can grow."""
        return replace(
            self,
            recent=torch.zeros_like(self.recent),
            best_size=torch.full_like(self.best_size, torch.inf),
            weight=self.weight / ease,
            streak=torch.zeros_like(self.streak),
        )

    def eligible(self, labels: Tensor) -> Tensor:
        """(K, N) bool: the images, by their labels (N,), that each trigger is searched on."""
        if self.sources is None:
            return labels[None] != self.classes[:, None]
        return labels[None] == self.sources[:, None]

    @property
    def reached(self) -> Tensor:
        """(K,) bool: a trigger of the wanted success was found."""
        return self.best_size.isfinite()

    def trigger(self, row: int, family: TriggerFamily) -> Trigger:
        """The smallest trigger found for the class in `row`, or where none worked, the last one tried."""
        return self._pick(self.best, row, family) if bool(self.reached[row]) else self.last(row, family)

    def last(self, row: int, family: TriggerFamily) -> Trigger:
        """The last trigger tried for the class in `row`."""
        return self._pick(self.parameters, row, family)

    def _pick(self, values: dict[str, Tensor], row: int, family: TriggerFamily) -> Trigger:
        parameters = {k: v[row : row + 1].detach().clone() for k, v in values.items()}
        source = None if self.sources is None else int(self.sources[row])
        return Trigger(family, parameters, int(self.classes[row]), float(family.size(parameters)), source)
