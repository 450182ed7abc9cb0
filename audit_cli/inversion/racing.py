"""Racing: every class is searched a little, the most suspicious ones are searched to the end.

Successive halving, after Karnin, Koren, Somekh: Almost Optimal Exploration in Multi-Armed Bandits, 2013,
https://proceedings.mlr.press/v28/karnin13.html: a rung of the race has fewer classes than the one before, and more
steps and images for each, so that the cost of all rungs hardly depends on the number of classes.

No class is dropped before it was optimised: the first rung runs all of them. What goes on is the classes with the
smallest triggers so far, and a random sample of all classes, searched exactly as long: what ordinary classes need is
told from that sample, so that the smallest trigger and the ordinary ones have had the same effort. What worked on the
few images of a rung is no proof on the next one's, which measures anew, and gives a trigger that was too small for
more images room to grow.
With few classes nothing is dropped, and the race is a plain search.

A family that is searched per source class has a trigger for every pair of classes, and none is dropped: which pairs are
easy is much the same on every clean model of a kind, so that each must be compared with itself.

Differs from the paper: the random sample; and the numbers are set by hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.inversion.engine import Search
from audit_cli.inversion.folding import folded
from audit_cli.inversion.listing import Listed, Listing
from audit_cli.inversion.state import State
from audit_cli.types import Context, TriggerFamily, TrustedData


@dataclass(frozen=True)
class Rung:
    """`steps` steps with `images` images a class and step, or as many as the search has.

    classes: how many run it, those with the smallest triggers so far, beside the sample; None: all. speed: factor on
    the family's step size.
    """

    classes: int | None
    steps: int
    images: int | None = None
    speed: float = 1.0

    def __post_init__(self) -> None:
        if min(n for n in (self.classes, self.steps, self.images, 1) if n is not None) < 1 or self.speed <= 0:
            raise ValueError(f"{self}: classes, steps, images and speed must be positive")

    def search(self, search: Search) -> Search:
        """`search` with the images and the speed of this rung."""
        return replace(search, images=self.images or search.images, speed=search.speed * self.speed)


@dataclass(frozen=True)
class Race:
    """A search of `steps` steps when the last rung has room for all classes, else one rung after the other."""

    steps: int = 300  # ours
    # Ours: 1,000 classes at less than three times the cost of ten, see fixtures/scripts/clip_cost.py. Many fast steps
    # on one image tell classes apart better than few steps on several, which cost the same.
    rungs: tuple[Rung, ...] = (Rung(None, 50, 1, speed=2.0), Rung(48, 60, 3), Rung(16, 95, 8))
    sample: int = 16  # ours: random classes that run all rungs
    ease: int = 8  # ours: how often the size's weight must grow on a new rung before it is what it was on the last one
    chunk: int = 128  # ours: classes that run the first rung together; what it needs of memory follows from this
    pairs: int = 400  # ours: most pairs of classes searched; with more, a family per source is left out
    # Ours, of each pair, and no more steps than `steps`: with half of them planted pairs are not yet smaller, and more
    # images tell no more (fixtures/results/pairs-study.json).
    each_pair: Rung = Rung(None, 120, 3)
    listing: Listing = field(default_factory=Listing)  # of families that are tried one by one
    starts: int = 1  # random triggers a class starts from where all run to the end; the smallest result counts

    def __post_init__(self) -> None:
        if min(self.steps, self.sample, self.chunk, self.starts) < 1:
            raise ValueError(f"{self}: steps, sample, chunk and starts must be at least 1")
        if min(self.pairs, self.ease) < 0:
            raise ValueError(f"{self}: pairs and ease must not be negative")
        if [rung.classes is None for rung in self.rungs] != [True] + [False] * max(1, len(self.rungs) - 1):
            raise ValueError(f"{self}: of at least two rungs the first, and no other, runs all classes")

    def covers(self, family: TriggerFamily, trusted: TrustedData, classes: int) -> bool:
        """Can this race search `family` on a model of so many classes?"""
        return not family.per_source or 0 < len(pairs(trusted, classes)[0]) <= self.pairs

    def deciding(self, family: TriggerFamily) -> tuple[object, ...]:
        """The settings that a search of `family` depends on, and no others."""
        if family.per_source:
            return self.steps, self.pairs, self.each_pair
        if isinstance(family, Listed):
            return self.listing, self.sample, self.rungs[-1].classes
        return self.steps, self.rungs, self.sample, self.ease, self.chunk, self.starts

    def whole(self, classes: int) -> bool:
        """Has the last rung room for so many classes, so that all run to the end?"""
        return classes <= (self.rungs[-1].classes or 0) + self.sample

    def sampled(self, classes: int, context: Context) -> Tensor:
        """The fair sample of so many classes: all of them when the last rung has room for all."""
        if self.whole(classes):
            return torch.arange(classes)
        return torch.randperm(classes, generator=context.generator(stream=4))[: self.sample]

    def run(
        self, suspect: Classifier, family: TriggerFamily, trusted: TrustedData, search: Search, context: Context
    ) -> tuple[State, Tensor]:
        """The K classes that ran to the end, and which of them (K,) bool are a fair sample of all classes; of a family
        per source K pairs of classes."""
        suspect = folded(suspect, trusted.images[:1].to(context.device))
        if isinstance(family, Listed):
            return self._run_listed(suspect, family, trusted, search, context)
        if family.per_source:
            state = self._of_pairs(suspect, family, trusted, search, context, range(suspect.num_classes))
            return state, torch.ones_like(state.classes, dtype=torch.bool)
        if len(self.sampled(suspect.num_classes, context)) < suspect.num_classes:
            return self._run_rungs(suspect, family, trusted, search, context)
        targets = torch.arange(suspect.num_classes).repeat(self.starts)
        state = search.start(family, targets, trusted.shape, context)
        context.progress.stage(f"{family.name} triggers", self.steps)
        state = search.run(suspect, family, state, trusted, self.steps, context)
        state = state.take(smallest_of_each(state, 1)) if self.starts > 1 else state
        return state, torch.ones_like(state.classes, dtype=torch.bool)

    def again(
        self,
        suspect: Classifier,
        family: TriggerFamily,
        classes: Sequence[int],
        starts: int,
        trusted: TrustedData,
        search: Search,
        context: Context,
        listed: int = 1,
        source: int | None = None,
    ) -> State:
        """A plain search to the end for `classes` alone, from `starts` random triggers each; of a family that is tried
        one by one, the `listed` best; of one per source, one trigger from every source, or those from the one
        `source`."""
        targets = torch.tensor(classes)
        suspect = folded(suspect, trusted.images[:1].to(context.device))
        if isinstance(family, Listed):
            return self.listing.several(suspect, family, trusted, search, context, targets, listed)
        if family.per_source and source is None:
            return self._of_pairs(suspect, family, trusted, search, context, classes)
        sources = None if source is None else torch.full((starts * len(targets),), source)
        state = search.start(family, targets.repeat(starts), trusted.shape, context, sources)
        context.progress.stage(f"{family.name} triggers left", self.steps)
        return search.run(suspect, family, state, trusted, self.steps, context)

    def _run_listed(
        self, suspect: Classifier, family: Listed, trusted: TrustedData, search: Search, context: Context
    ) -> tuple[State, Tensor]:
        sample = self.sampled(suspect.num_classes, context)
        more = (self.rungs[-1].classes or 0) if len(sample) < suspect.num_classes else 0
        state = self.listing.run(suspect, family, trusted, search, context, sample, more)
        return state, torch.isin(state.classes, sample.to(state.classes))

    def _run_rungs(
        self, suspect: Classifier, family: TriggerFamily, trusted: TrustedData, search: Search, context: Context
    ) -> tuple[State, Tensor]:
        first, *later = self.rungs
        chunks = torch.arange(suspect.num_classes).split(self.chunk)
        sample = self.sampled(suspect.num_classes, context).to(context.device)
        steps = len(chunks) * first.steps + sum(rung.steps for rung in later)
        context.progress.stage(f"{family.name} triggers", steps)

        def begin(classes: Tensor) -> State:
            state = search.start(family, classes, trusted.shape, context)
            return first.search(search).run(suspect, family, state, trusted, first.steps, context)

        state = begin(chunks[0])
        for classes in chunks[1:]:
            state = state.take(going_on(state, later[0], sample))  # before the next chunk takes its memory
            state = state.join(begin(classes))
        for rung in later:
            state = state.take(going_on(state, rung, sample)).unproven(family.growth**self.ease)
            state = rung.search(search).run(suspect, family, state, trusted, rung.steps, context)
        return state, torch.isin(state.classes, sample)

    def _of_pairs(
        self,
        suspect: Classifier,
        family: TriggerFamily,
        trusted: TrustedData,
        search: Search,
        context: Context,
        classes: Sequence[int],
    ) -> State:
        """All pairs with a target among `classes`."""
        targets, sources = pairs(trusted, suspect.num_classes)
        rows = torch.isin(targets, torch.tensor(classes))
        steps = min(self.steps, self.each_pair.steps)
        state = search.start(family, targets[rows], trusted.shape, context, sources[rows])
        context.progress.stage(f"{family.name} triggers", steps)
        return self.each_pair.search(search).run(suspect, family, state, trusted, steps, context)


def going_on(state: State, rung: Rung, sample: Tensor) -> Tensor:
    """Rows of the classes that run `rung`: the smallest, and those in `sample`; in the order they have."""
    sampled = torch.isin(state.classes, sample).nonzero().flatten()
    rows: Tensor = torch.cat([smallest(state)[: rung.classes], sampled]).unique()
    return rows


def smallest(state: State) -> Tensor:
    """Rows (K,) by size, smallest first; those without a working trigger last, by success and then by loss."""
    order = torch.argsort(state.losses.mean(1), stable=True)
    for key in (-state.recent.mean(1), state.best_size):  # the most important last: the sort keeps the order of equals
        order = order[torch.argsort(key[order], stable=True)]
    return order


def smallest_of_each(state: State, count: int) -> Tensor:
    """Rows of the `count` smallest triggers of every target, in the order of the targets."""
    order = smallest(state)
    return torch.cat([order[state.classes[order] == c][:count] for c in state.classes.unique()])


def pairs(trusted: TrustedData, classes: int) -> tuple[Tensor, Tensor]:
    """Targets and sources (K,) of all pairs of different classes whose source has at least two trusted images."""
    sources = torch.nonzero(torch.bincount(trusted.labels, minlength=classes) >= 2).flatten()
    both = torch.cartesian_prod(torch.arange(classes), sources.cpu())
    both = both[both[:, 0] != both[:, 1]]
    return both[:, 0], both[:, 1]
