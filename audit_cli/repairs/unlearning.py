"""Invert, then unlearn: recover the small triggers of the model and train it to see through them.

After Wang et al.: Neural Cleanse, 2019, https://doi.org/10.1109/SP.2019.00031 (section VI-B, patching by unlearning).
An inverted trigger is an approximation of the true one, so one round teaches the model to ignore the approximation
only. Inverting the half-repaired model again gives the part of the backdoor that is left; all triggers found so far
stay in the lesson. What no inversion finds is taught inside the network (inside.py): half-way through it the
approximation and the true trigger are alike. Where a scan has found the head easily persuaded (detectors/shift.py), it
is taught, too.

    triggers ← smallest triggers of the suspicious classes
    repeat: triggers += smallest triggers that are left in those classes, from several starts
            minimise  q · KL(f(x; pivot) ‖ f(x ⊕ T; θ)) + (1 − q) · KL(f(x; pivot) ‖ f(x; θ))    T drawn from triggers
            at the image in one step, inside the network in the next: half-way, and where it is `persuaded`
            just before the head, too
    until none of them is small any more

A class is suspicious when its smallest trigger is `suspicious` times smaller than the pivot's median class needs,
and by `allowed` more in a family whose sizes differ much on clean models; or when a scan has `accused` it, and
waves, which clean models obey too, only then. Of triggers for the images of one class alone those from the known
`sources` to an accused class are taught, or the `pairs` smallest, where they are `suspicious`ly small among all
pairs. What is `told` of by random changes (accusation.py) is searched in accused classes alone, and once, since no
model is without. The pivot sees clean images only, and what it says of them is the lesson for both: with few images
its answers hold the accuracy better than labels do, and better still on mixtures of two images, of which there are
many. The pupil alone sees them under random changes of the kinds that convict, where a scan has told of any: the true
trigger is one of that kind, and the recovered ones are few. Where nothing else helps it sees them through a fog of one
colour, since a blended pattern works as a fog does, and no recovered trigger takes anything from the image.

Networks with layer normalisation (Vision Transformers, the image tower of CLIP, ConvNeXt) are tuned with Adam, and no
further from the pivot than `drift`; fog and lessons inside left more of the backdoor there (development: vit-badnets)
and are left out, and more of every batch carries a trigger. Of CLIP the image tower alone is tuned: text tower and
temperature are no parameters of a zero-shot classifier.

Differs from the paper: several rounds, trigger families and starts instead of one; lessons inside the network;
distillation instead of labels; batch normalisation is frozen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.detectors.changes import Bank, Change
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.engine import Search
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race
from audit_cli.inversion.warp import Warp
from audit_cli.inversion.wave import Wave
from audit_cli.repairs.distillation import distillation
from audit_cli.repairs.drift import bound, layer_normalised
from audit_cli.repairs.inside import features, fed, moved, within
from audit_cli.repairs.stamping import changed, gathered, in_fog, mix, stamp
from audit_cli.repairs.watch import Watch, unwatched
from audit_cli.training import Fit
from audit_cli.types import Context, Trigger, TriggerFamily, TrustedData


class Survey(NamedTuple):
    """What is found on the pivot before anything is taught."""

    triggers: tuple[Trigger, ...]  # the smallest that work, by family and class
    told: tuple[tuple[Trigger, ...], ...]  # of each kind that is told of and each class accused of it, smallest first
    usual: Mapping[str, float]  # what the median class needs in each family that is searched in all classes


@dataclass(frozen=True)
class Unlearning:
    """families: the kinds of trigger looked for. Without a suspicious class, the most suspicious one is unlearnt."""

    families: tuple[TriggerFamily, ...] = (Mask(), Additive(), Warp(), Wave())
    allowed: tuple[tuple[str, float], ...] = (("warp", 2.5), ("wave", 2.5))  # ours
    if_accused: tuple[str, ...] = ("wave", "source_mask")  # clean models have small ones, too
    told: tuple[TriggerFamily, ...] = ()  # further ones, of accused classes; round after round of them costs accuracy
    changes: tuple[Change | Bank, ...] = ()  # kinds of random change that the pupil sees images under
    accused: frozenset[tuple[str, int]] = frozenset()  # families and classes that are suspicious whatever their size
    sources: frozenset[tuple[int, int]] = frozenset()  # accused classes, each with a source class it is accused from
    persuaded: bool = False  # is the head? Then it is taught on half of the steps inside
    surveyed: Survey | None = None  # of the same pivot by the same search, where it is known already
    search: Search = field(default_factory=Search)
    race: Race = field(default_factory=Race)
    rounds: int = 5  # ours
    starts: int = 3  # ours: triggers a suspicious class, family and round
    listed: int = 8  # ours: the same in a family tried one by one, where the true trigger's neighbours work, too
    suspicious: float = 1.5  # ours: ratio to the median class from which a class is taught
    pairs: int = 3  # ours: triggers a class and round of a family that is searched per source class
    left: float = 0.7  # ours: goes on while a suspicious class has a trigger so much smaller than the median class
    steps: int = 150  # ours: a round
    lr: float = 0.01  # ours: with frozen batch normalisation it needs the clipping
    # The next four are for networks with layer normalisation only. Ours: Adam's lr, times the latents' width; a step
    # shrinks as networks widen (Yang et al., Tensor Programs V, 2022).
    adam_lr: float = 0.1
    often: float = 0.25  # ours: at least so large a share `stamped`; half of it leaves more success (development)
    longer: int = 2  # ours: factor on `steps`; 1 costs accuracy and leaves more success (development, vit-badnets)
    drift: float = 0.3  # ours: largest ‖θ − θ~‖ / ‖θ~‖
    batch: int = 128
    stamped: float = 0.125  # ours: share q of every batch that carries a trigger
    clip: float = 1.0  # ours
    exaggerated: float = 2.0  # ours: the smallest trigger that works is weaker than the true one
    mixed: float = 0.5  # ours: largest share of a second image in the first; Zhang et al., mixup, 2018
    changed: float = 0.25  # ours: share of every batch under `changes`; half leaves as much for it (development, WaNet)
    fog: float = 0.0  # largest share of a colour in half of the pupil's images
    # The next three: what is taught inside the network, on every other step or so.
    inside: float = 0.25  # ours: share of such steps; half costs accuracy and leaves hardly less (development)
    deeper: float = 5.0  # ours: the features move by up to so many times what the recovered trigger moves them
    last: float = 2.0  # ours: the same just before the head, where 5 costs accuracy (development)
    taught: int = 2  # ours: triggers, the most suspicious of the pivot
    moved: float = 0.5  # ours: share of every such batch whose features move
    pad: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        for name in ("rounds", "starts", "listed", "steps", "lr", "adam_lr", "longer", "drift", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"Unlearning({name}={getattr(self, name)}): must be positive")
        if not (0 < self.stamped < 1 and 0 < self.often < 1 and 0 < self.moved < 1):
            raise ValueError(f"{self}: stamped, often and moved lie between 0 and 1")
        if self.exaggerated < 1 or min(self.deeper, self.last) < 0 or self.taught < 1:
            raise ValueError(f"{self}: exaggerated >= 1, deeper >= 0, last >= 0, taught >= 1")
        if not all(0 <= share <= 1 for share in (self.mixed, self.changed, self.fog, self.inside)):
            raise ValueError(f"{self}: mixed, changed, fog and inside are shares")

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        """A repaired clone of `pivot` on the context's device, in eval mode; `pivot` is untouched.

        Nothing is changed when no class has a trigger that works.
        """
        return self.suited(pivot)._repair(pivot, trusted, context, watch)

    def suited(self, pivot: Classifier) -> Unlearning:
        """These settings, or what a network with layer normalisation needs instead."""
        if not layer_normalised(pivot):
            return self
        return replace(self, inside=0.0, fog=0.0, stamped=max(self.stamped, self.often))

    def _repair(self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch) -> Classifier:
        anchor = pivot.clone().on(context.device).frozen()
        surveyed = self.surveyed or self.survey(anchor, trusted, context)
        lesson, usual = self.lesson(surveyed), surveyed.usual
        suspects = {(trigger.family, trigger.target) for trigger in lesson if trigger.family.name in usual}
        suspects |= {(f, c) for f in self.families if f.per_source and f.name in usual for c, _ in self.sources}
        repaired = anchor.clone()
        cuts = self._cuts(anchor, trusted.images.to(context.device)) if self.inside else {}
        for turn in range(self.rounds if lesson or suspects else 0):
            fresh = replace(context, seed=context.seed + turn)
            found = self._invert(repaired.frozen(), trusted, suspects, fresh)
            small = self._few([t for t in found if usual[t.family.name] / t.size >= self.left], usual)
            if not small and (turn or not lesson):
                break
            lesson += small
            repaired = self._unlearn(repaired, anchor, lesson, cuts, trusted, fresh, watch, turn)
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

    def _cuts(self, anchor: Classifier, images: Tensor) -> dict[str, float]:
        """Where it is taught inside, and how far the features move there."""
        found = within(anchor, images)
        last = found[1:] if self.persuaded else ()
        return dict.fromkeys(found[:1], self.deeper) | dict.fromkeys(last, self.last)

    def _unlearn(
        self,
        model: Classifier,
        anchor: Classifier,
        lesson: Sequence[Trigger],
        cuts: Mapping[str, float],
        trusted: TrustedData,
        context: Context,
        watch: Watch,
        turn: int,
    ) -> Classifier:
        """A clone of `model`, taught to answer as the anchor does on clean images, with and without the triggers, at
        the image and at the `cuts`, each with how far the features move there."""
        generator = context.generator(stream=6)

        def at_the_image(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            n = max(1, round(self.stamped * len(x)))
            x, y = gathered(lesson, x, y, n, generator)
            with torch.no_grad():
                teacher = anchor(x).float()
                others = self._changed(x[n:], round(self.changed * len(x)), generator)
                seen = torch.cat([stamp(lesson, x[:n], y[:n], generator, self.exaggerated), others])
                seen = in_fog(seen, self.fog, generator)
            return distillation(classifier(seen).float(), teacher)

        def at_a_cut(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            cut = list(cuts)[int(torch.randint(len(cuts), (), generator=generator))]
            n = max(1, round(self.moved * len(x)))
            x, y = gathered(lesson[: self.taught], x, y, n, generator)
            with torch.no_grad():
                z, teacher = features(anchor, cut, x)
                triggered, _ = features(anchor, cut, stamp(lesson[: self.taught], x[:n], y[:n], generator))
                z = torch.cat([moved(z[:n], triggered, cuts[cut], generator), z[n:]])
            with fed(classifier, cut, z):
                return distillation(classifier(x).float(), teacher.float())

        def loss(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            x = mix(x, self.mixed, generator)
            if cuts and float(torch.rand((), generator=generator)) < self.inside:
                return at_a_cut(classifier, x, y)
            return at_the_image(classifier, x, y)

        pupil = model.clone()
        fit, bounded = self._fit(pupil, trusted.shape), layer_normalised(pupil)

        def after_step(step: int) -> None:
            if bounded:
                bound(pupil, anchor, self.drift)
            watch(turn * fit.steps + step, pupil)

        return fit.run(pupil, trusted.images, trusted.labels, context, loss, after_step, stage="unlearning")

    def _changed(self, images: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """The images (B, C, H, W), the first `count` of them changed at random."""
        if not self.changes:
            return images
        return torch.cat([changed(self.changes, images[:count], generator), images[count:]])

    def _fit(self, pupil: Classifier, shape: tuple[int, int, int]) -> Fit:
        """How the pupil is tuned on images of `shape` (C, H, W)."""
        fit = Fit(
            self.steps, self.lr, self.batch, schedule="cosine", pad=self.pad, flip=self.flip, batch_norm="frozen",
            clip=self.clip,
        )  # fmt: skip
        if not layer_normalised(pupil):
            return fit
        # A shift by a good part of the image shows a transformer nothing it knows, and the answers there cost accuracy.
        pad = min(self.pad, min(shape[1:]) // 8)
        lr = self.adam_lr / pupil.head.in_features
        return replace(fit, steps=self.longer * self.steps, lr=lr, optimiser="adam", pad=pad)
