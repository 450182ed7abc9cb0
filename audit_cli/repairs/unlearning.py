"""Invert, then unlearn: recover the small triggers of the model and train it to see through them.

After Wang et al.: Neural Cleanse, 2019, https://doi.org/10.1109/SP.2019.00031 (section VI-B, patching by unlearning).
An inverted trigger is an approximation of the true one, so one round teaches the model to ignore the approximation
only. Inverting the half-repaired model again gives the part of the backdoor that is left; all triggers found so far
stay in the lesson. What no inversion finds is taught inside the network (inside.py): half-way through it the
approximation and the true trigger are alike. Where a scan has found the head easily persuaded (detectors/shift.py), it
is taught, too.

    triggers ← smallest triggers of the suspicious classes
    repeat: triggers += smallest triggers that are left in those classes, from several starts
            teach the model to answer with them as the pivot does without (teaching.py)
    until none of them is small any more

A class is suspicious when its smallest trigger is `suspicious` times smaller than the pivot's median class needs,
and by `allowed` more in a family whose sizes differ much on clean models; or when a scan has `accused` it, and
waves, which clean models obey too, only then. Of triggers for the images of one class alone those from the known
`sources` to an accused class are taught, or the `pairs` smallest, where they are `suspicious`ly small among all
pairs. What is `told` of by random changes (accusation.py) is searched in accused classes alone, and once, since no
model is without.

Of CLIP the image tower alone is tuned: text tower and temperature are no parameters of a zero-shot classifier.

Differs from the paper: several rounds, trigger families and starts instead of one; lessons inside the network;
distillation instead of labels; batch normalisation is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from audit_cli.classifier import Classifier
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.engine import Search
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race
from audit_cli.inversion.warp import Warp
from audit_cli.inversion.wave import Wave
from audit_cli.repairs.teaching import Teaching
from audit_cli.repairs.watch import Watch, unwatched
from audit_cli.types import Context, Trigger, TriggerFamily, TrustedData


class Survey(NamedTuple):
    """What is found on the pivot before anything is taught."""

    triggers: tuple[Trigger, ...]  # the smallest that work, by family and class
    told: tuple[tuple[Trigger, ...], ...]  # of each kind that is told of and each class accused of it, smallest first
    usual: Mapping[str, float]  # what the median class needs in each family that is searched in all classes


@dataclass(frozen=True)
class Unlearning(Teaching):
    """families: the kinds of trigger looked for. Without a suspicious class, the most suspicious one is unlearnt."""

    families: tuple[TriggerFamily, ...] = (Mask(), Additive(), Warp(), Wave())
    allowed: tuple[tuple[str, float], ...] = (("warp", 2.5), ("wave", 2.5))  # ours
    if_accused: tuple[str, ...] = ("wave", "source_mask")  # clean models have small ones, too
    told: tuple[TriggerFamily, ...] = ()  # further ones, of accused classes; round after round of them costs accuracy
    accused: frozenset[tuple[str, int]] = frozenset()  # families and classes that are suspicious whatever their size
    sources: frozenset[tuple[int, int]] = frozenset()  # accused classes, each with a source class it is accused from
    surveyed: Survey | None = None  # of the same pivot by the same search, where it is known already
    search: Search = field(default_factory=Search)
    race: Race = field(default_factory=Race)
    rounds: int = 5  # ours
    starts: int = 3  # ours: triggers a suspicious class, family and round
    listed: int = 8  # ours: the same in a family tried one by one, where the true trigger's neighbours work, too
    suspicious: float = 1.5  # ours: ratio to the median class from which a class is taught
    pairs: int = 3  # ours: triggers a class and round of a family that is searched per source class
    left: float = 0.7  # ours: goes on while a suspicious class has a trigger so much smaller than the median class

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rounds", "starts", "listed"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Unlearning({name}={getattr(self, name)}): must be positive")

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """A repaired clone of `pivot` on the context's device, in eval mode; `pivot` is untouched.

        Nothing is changed when no class has a trigger that works.
        """
        return self.suited(pivot)._repair(pivot, trusted, context, watch)

    def _repair(self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch) -> Classifier:
        anchor = pivot.clone().on(context.device).frozen()
        surveyed = self.surveyed or self.survey(anchor, trusted, context)
        lesson, usual = self.lesson(surveyed), surveyed.usual
        suspects = {(trigger.family, trigger.target) for trigger in lesson if trigger.family.name in usual}
        suspects |= {(f, c) for f in self.families if f.per_source and f.name in usual for c, _ in self.sources}
        repaired = anchor.clone()
        cuts = self.cuts(anchor, trusted.images.to(context.device))
        for turn in range(self.rounds if lesson or suspects else 0):
            fresh = replace(context, seed=context.seed + turn)
            found = self._invert(repaired.frozen(), trusted, suspects, fresh)
            small = self._few([t for t in found if usual[t.family.name] / t.size >= self.left], usual)
            if not small and (turn or not lesson):
                break
            lesson += small
            repaired = self.teach(repaired, anchor, lesson, cuts, trusted, fresh, watch, turn)
        return repaired

    def survey(self, pivot: Classifier, trusted: TrustedData, context: Context) -> Survey:
        """Searches all classes of `pivot` for small triggers, most of the work of a repair; `pivot` is untouched."""
        pivot = pivot.clone().on(context.device).frozen()
        triggers: list[Trigger] = []
        usual: dict[str, float] = {}
        for family in self.families:
            state, _ = self.race.run(pivot, family, trusted, self.search, context)
            if not bool(state.reached.any()):
                continue
            ceiling = family.ceiling(trusted.shape)
            largest = ceiling if math.isfinite(ceiling) else float(state.best_size[state.reached].max())
            sizes = torch.where(state.reached, state.best_size, largest)
            usual[family.name] = float(sizes.median()) / dict(self.allowed).get(family.name, 1.0)
            triggers += [state.trigger(row, family) for row in state.reached.nonzero().flatten().tolist()]
        return Survey(tuple(triggers), tuple(map(tuple, self._kinds(pivot, trusted, context))), usual)

    def lesson(self, surveyed: Survey) -> list[Trigger]:
        """What to teach of it: the best of each kind that is told of, what is suspicious, most suspicious first, then
        the others that are told of."""

        def ratio(trigger: Trigger) -> float:
            return surveyed.usual[trigger.family.name] / trigger.size

        found = sorted(surveyed.triggers, key=lambda t: (self._accuses(t), ratio(t)), reverse=True)
        suspicious = [t for t in found if self._accuses(t) or (self._tells(t) and ratio(t) >= self.suspicious)]
        suspicious = self._few(suspicious, surveyed.usual)
        best, others = [kind[0] for kind in surveyed.told], [t for kind in surveyed.told for t in kind[1:]]
        return [*best, *suspicious, *others] or [t for t in found if self._tells(t)][:1]

    def _kinds(self, pivot: Classifier, trusted: TrustedData, context: Context) -> list[list[Trigger]]:
        """Triggers of each family that it was told of, by accused class, smallest first."""
        kinds = []
        for family in self.told:
            for target in sorted(target for name, target in self.accused if name == family.name):
                found = self._invert(pivot, trusted, {(family, target)}, context)
                kinds.append(sorted(found, key=lambda trigger: trigger.size))
        return [found for found in kinds if found]

    def _few(self, triggers: Sequence[Trigger], usual: Mapping[str, float]) -> list[Trigger]:
        """The triggers in their order, but of those per source only those from the source that their class is accused
        from, or where none is known, the few smallest that are suspicious."""
        known = {target for target, _ in self.sources}
        of_pairs = [t for t in triggers if t.source is not None and usual[t.family.name] / t.size >= self.suspicious]
        kept = [t for t in triggers if (t.target, t.source) in self.sources]
        for target in {trigger.target for trigger in of_pairs} - known:
            kept += sorted((t for t in of_pairs if t.target == target), key=lambda t: t.size)[: self.pairs]
        return [t for t in triggers if t.source is None or any(t is other for other in kept)]

    def _tells(self, trigger: Trigger) -> bool:
        """Is a small one suspicious by itself?"""
        return trigger.family.name not in self.if_accused

    def _accuses(self, trigger: Trigger) -> bool:
        return (trigger.family.name, trigger.target) in self.accused

    def _invert(
        self, model: Classifier, trusted: TrustedData, suspects: set[tuple[TriggerFamily, int]], context: Context
    ) -> list[Trigger]:
        """Small triggers that still work, from several starts for each suspicious (family, class)."""
        found = []
        known = {target for target, _ in self.sources}
        for family in (*self.families, *self.told):
            classes = sorted({target for other, target in suspects if other == family})
            searches: list[tuple[list[int], int | None]] = [(classes, None)]
            if family.per_source:
                pairs = sorted(pair for pair in self.sources if pair[0] in classes)
                searches = [([c for c in classes if c not in known], None), *(([c], source) for c, source in pairs)]
            for some, source in searches:
                if some:
                    state = self.race.again(
                        model, family, some, self.starts, trusted, self.search, context, self.listed, source
                    )
                    found += [state.trigger(row, family) for row in state.reached.nonzero().flatten().tolist()]
        return found
