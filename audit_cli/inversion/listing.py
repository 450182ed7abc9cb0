"""A search without gradients: try every trigger of a list, and make the best ones as weak as they can be.

For families whose triggers can be counted. All of them are tried at one size on a few images, and a pass tells their
success towards every class at once. For each class the best few then shrink or grow, by bisection of the log size,
to the smallest size of the matched success. Nothing is random but which images are seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.inversion.engine import PIXELS_PER_PASS, Search
from audit_cli.inversion.state import State
from audit_cli.types import Context, TriggerFamily, TrustedData


@runtime_checkable
class Listed(TriggerFamily, Protocol):
    """A family of finitely many triggers, each at any size up to the family's ceiling."""

    @property
    def smallest(self) -> float:
        """Sizes below this do not differ."""
        ...

    def listed(self, images: Tensor) -> dict[str, Tensor]:
        """All of them, (L, …) each, at a size where they differ in success. images (N, C, H, W): trusted ones, in case
        the list is made from photographs."""
        ...

    def scaled(self, parameters: Mapping[str, Tensor], sizes: Tensor) -> dict[str, Tensor]:
        """The triggers of `parameters` (K, …) at `sizes` (K,)."""
        ...


@dataclass(frozen=True)
class Listing:
    """How thoroughly the list is tried."""

    images: int = 60  # ours: that every trigger is tried on
    finalists: int = 2  # ours: triggers of a class whose size is sought
    later: int = 120  # ours: images for that
    halvings: int = 6  # ours: of the log size

    def __post_init__(self) -> None:
        if min(self.images, self.finalists, self.later, self.halvings) < 1:
            raise ValueError(f"{self}: all must be positive")

    def run(
        self,
        suspect: Classifier,
        family: Listed,
        trusted: TrustedData,
        search: Search,
        context: Context,
        classes: Tensor,
        more: int = 0,
    ) -> State:
        """The smallest trigger of the list for each of `classes` (K,) and `more` others, those the list reaches best.
        The suspect must be frozen and on the context's device."""
        state = self.several(suspect, family, trusted, search, context, classes, self.finalists, more)
        sizes = state.best_size.view(len(state.classes.unique()), -1)
        best = sizes.argmin(1) + torch.arange(len(sizes), device=sizes.device) * sizes.shape[1]
        return state.take(best)

    def several(
        self,
        suspect: Classifier,
        family: Listed,
        trusted: TrustedData,
        search: Search,
        context: Context,
        classes: Tensor,
        each: int,
        more: int = 0,
    ) -> State:
        """As `run`, but `each` triggers for every class, those that reach it best, or all when the list is shorter."""
        generator = context.generator(stream=11)
        few, several = (draw(trusted, count, generator) for count in (self.images, self.later))
        listed = {name: value.to(context.device) for name, value in family.listed(trusted.images).items()}
        tried, total = len(family.size(listed)), len(classes) + more
        each = min(each, tried)
        context.progress.stage(f"{family.name} triggers", tried + self.halvings * each * total)
        rates, hopes = success_of(suspect, family, listed, few, context)  # (L, all classes)
        order = rates.amax(0).argsort(descending=True, stable=True)
        classes = torch.cat([classes.to(order), order[~torch.isin(order, classes.to(order))][:more]]).sort().values
        finalists = best_of(rates[:, classes], hopes[:, classes])[:each].T  # (K, each)
        targets = classes.repeat_interleave(each)
        parameters = {name: value[finalists.flatten()] for name, value in listed.items()}
        sizes = self._shrink(suspect, family, parameters, targets, several, search.matched(family), context)
        best = family.scaled(parameters, torch.where(sizes.isfinite(), sizes, family.ceiling(trusted.shape)))
        state = search.start(family, targets, trusted.shape, context)
        return replace(state, parameters=best, best=best, best_size=sizes)

    def _shrink(
        self,
        suspect: Classifier,
        family: Listed,
        parameters: Mapping[str, Tensor],
        targets: Tensor,
        data: TrustedData,
        wanted: float,
        context: Context,
    ) -> Tensor:
        """(R,) the smallest size at which the trigger of each row reaches `wanted` success; inf where none does."""
        sizes = family.size(parameters)
        low, high = torch.full_like(sizes, family.smallest), torch.full_like(sizes, family.ceiling(data.shape))
        smallest = torch.full_like(sizes, math.inf)
        for _ in range(self.halvings):
            rates, _ = success_of(suspect, family, family.scaled(parameters, sizes), data, context)
            works = rates.gather(1, targets[:, None])[:, 0] >= wanted
            smallest = torch.where(works, sizes.minimum(smallest), smallest)
            low, high = torch.where(works, low, sizes), torch.where(works, sizes, high)
            sizes = (low * high).sqrt()
        return smallest


def success_of(
    suspect: Classifier, family: TriggerFamily, parameters: Mapping[str, Tensor], data: TrustedData, context: Context
) -> tuple[Tensor, Tensor]:
    """(L, classes) each: how often the triggers of `parameters` send images of other classes to each class, and the
    mean log-probability they give it there."""
    images, labels = data.images.to(context.device), data.labels.to(context.device)
    per_pass = max(1, PIXELS_PER_PASS // (images.shape[-1] * images.shape[-2]))
    others = (labels[:, None] != torch.arange(suspect.num_classes, device=context.device)).float()  # (N, classes)
    others = others / others.sum(0).clamp(min=1)
    rates, hopes = [], []
    for rows in torch.arange(len(family.size(parameters))).split(max(1, per_pass // len(images))):
        some, told = {name: value[rows] for name, value in parameters.items()}, []
        for part in images.split(per_pass):
            stamped = family.stamp(some, part.expand(len(rows), *part.shape))
            with torch.no_grad(), context.autocast():
                logits = suspect(stamped.flatten(0, 1).contiguous(memory_format=torch.channels_last))
            told.append(logits.float().log_softmax(1).view(len(rows), len(part), -1))
        answers = torch.cat(told, 1)  # (rows, N, classes)
        rates.append((F.one_hot(answers.argmax(2), suspect.num_classes) * others).sum(1))
        hopes.append((answers * others).sum(1))
        context.advance(len(rows))
    return torch.cat(rates), torch.cat(hopes)


def best_of(rates: Tensor, hopes: Tensor) -> Tensor:
    """(L, K) each -> for each of K the rows, best first: by `rates`, and where these are equal by `hopes`."""
    order = hopes.argsort(dim=0, descending=True, stable=True)
    return order.gather(0, rates.gather(0, order).argsort(dim=0, descending=True, stable=True))


def draw(trusted: TrustedData, count: int, generator: torch.Generator) -> TrustedData:
    """`count` of the images, or all when there are fewer."""
    return trusted.take(torch.randperm(len(trusted), generator=generator)[:count])
