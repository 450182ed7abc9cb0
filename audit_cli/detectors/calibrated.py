"""Calibrated trigger inversion, the default detector.

For every class and trigger family it finds the smallest trigger that works. What counts is its size: how much smaller
it is than the model's other classes need at the same success (BD001). With `references`, repaired copies of the
suspect, the gap is told beside it: how much of the trigger's success, on images the search never saw, is lost on the
middle one of them (BD002).

Of a family that is searched per source, a class counts by its easiest source; how easy each pair of classes is goes
with the finding, for a calibration.

Beside the families it measures how far the last features must move to each class (`shift`), and how readily each class
is answered on clean images and on randomly changed ones (`profile`); all also BD001.

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671 (Algorithm 4), and Wang et al.: Neural Cleanse, 2019,
https://doi.org/10.1109/SP.2019.00031.

Differs from the papers:
- the trigger is made small, where Algorithm 4 leaves it free: an unbounded pattern is found for every class of every
  model, clean ones included, and the gap alone does not tell them apart. `published` is Algorithm 4 as it stands.
- sizes are compared with the smallest that ordinary classes should have, see `smallness`; Neural Cleanse's median
  absolute deviation over ten classes is unstable.
- there is no reference model by default: in three of four families the gap told planted from clean models no better
  than chance, for several times the price of the search (fixtures/results/search-study.json).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.detectors.profile import Profile
from audit_cli.detectors.shift import Shift
from audit_cli.detectors.smallness import PRIOR_CLASSES, PRIOR_SIGMA, smallness
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.engine import Search
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race, smallest_of_each
from audit_cli.inversion.source_mask import SourceMask
from audit_cli.inversion.state import State
from audit_cli.inversion.warp import Warp
from audit_cli.inversion.wave import Wave
from audit_cli.metrics import asr, predict
from audit_cli.types import Context, Finding, Repair, Trigger, TriggerFamily, TrustedData

APART = frozenset({"mask", "warp"})  # judged by thresholds alone: compared, they add nothing (fixtures/results/)


@dataclass(frozen=True)
class Calibrated:
    """families: the kinds of trigger searched for. references: repairs whose results are reference models. shift: the
    search in the features, profile: the answers on clean images; None for none. searching: are triggers searched for?
    Otherwise only what one pass over the images tells is measured, which decides beside clean models alone."""

    families: tuple[TriggerFamily, ...] = (Mask(), Additive(), Warp(), Wave(), SourceMask())
    search: Search = field(default_factory=Search)
    race: Race = field(default_factory=Race)
    references: tuple[Repair, ...] = ()
    shift: Shift | None = field(default_factory=Shift)
    profile: Profile | None = field(default_factory=Profile)
    fit_share: float = 0.5  # ours: share of trusted images that searching and tuning may use; the rest measures
    searching: bool = True

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        """BD001, and with references BD002, for every class that ran to the end of the race in each family; BD107 at
        the end."""
        fit, holdout = trusted.split(self.fit_share, context.generator(stream=5))
        suspect = suspect.clone().on(context.device).frozen()
        references = [repair(suspect, fit, context).frozen() for repair in self.references]
        compared: set[int] = set()
        finalists: set[int] = set()  # of families that are in calibrations, whose features are of no other classes
        reached: set[int] = set()
        families = [f for f in self.families if self.searching and self.race.covers(f, fit, suspect.num_classes)]
        for family in families:
            state, ordinary = self.race.run(suspect, family, fit, self.search, context)
            easier: dict[int, dict[str, float]] = {}
            if family.per_source:
                easier, smallest = ease(state, fit.class_names), smallest_of_each(state, 1)
                state, ordinary = state.take(smallest), ordinary[smallest]
            if not (family.per_source or family.name in APART):
                finalists.update(state.classes.tolist())
            compared.update(state.classes.tolist())
            reached.update(state.classes[state.reached].tolist())
            context.progress.stage(f"{family.name} triggers on unseen images", len(state.classes))
            sizes = needed(state, family.ceiling(fit.shape))
            small = smallness(sizes, ordinary, suspect.num_classes)
            for row in range(len(state.classes)):
                trigger = state.trigger(row, family)
                found = bool(state.reached[row])
                rate = success(suspect, trigger, holdout, context)
                left = [success(reference, trigger, holdout, context) for reference in references]
                known = bool(sizes[row].isfinite())  # a bounded family: no size under its largest works
                score, ratio = (float(small.score[row]), float(small.ratio[row])) if known else (0.0, 0.0)
                size = self._size(trigger, score, ratio, rate, left, holdout.class_names)
                by_source = easier.get(trigger.target, {})
                yield replace(size, details={**size.details, "reached": found}, by_source=by_source)
                if references:
                    yield gap(size, left)
                context.advance()
        if self.shift is not None and (self.searching or self.race.whole(suspect.num_classes)):
            yield from self._shifts(self.shift, suspect, trusted, finalists, context)
        if self.profile is not None:
            yield from answers(self.profile, suspect, trusted, context)
        if self.searching:
            wanted = max((self.search.matched(family) for family in families), default=0.0)
            yield uncompared(compared - reached, suspect.num_classes, wanted)
        else:
            yield unsearched(suspect.num_classes)

    def searched(self, trusted: TrustedData, classes: int) -> set[str]:
        """Names of the families that are searched on a model of so many classes."""
        return {family.name for family in self.families if self.race.covers(family, trusted, classes)}

    @property
    def compared(self) -> Calibrated:
        """The same, for the scores alone that a calibration holds."""
        families = tuple(family for family in self.families if family.name not in APART)
        return replace(self, families=families, references=())

    @property
    def measured(self) -> Calibrated:
        """The same without searches: what one pass over the images tells."""
        return replace(self, references=(), searching=False)

    @property
    def scoring(self) -> dict[str, str]:
        """Whatever the BD001 scores of each compared family depend on, as text: a calibration holds for these only."""
        priors = (PRIOR_SIGMA, PRIOR_CLASSES)
        searches = {
            family.name: repr((family, self.search, self.race.deciding(family), self.fit_share, priors))
            for family in self.compared.families
        }
        found = dict(searches) if self.searching else {}
        if self.shift is not None:  # which classes it is measured for depends on the race
            finalists = [searches[family.name] for family in self.compared.families if not family.per_source]
            found[self.shift.name] = repr((self.shift, finalists, self.race.sample, self.race.rungs[-1], priors))
        if self.profile is not None:
            found |= self.profile.scoring
        return found

    def _shifts(
        self, shift: Shift, suspect: Classifier, trusted: TrustedData, finalists: set[int], context: Context
    ) -> Iterator[Finding]:
        """BD001 in the family `features`, for the `finalists` and the race's fair sample of all classes. Nothing is
        measured on unseen images, so all may be used: what is found depends on how many of a class they are."""
        names = dict(enumerate(trusted.class_names))
        sample = self.race.sampled(suspect.num_classes, context)
        classes = torch.tensor(sorted(finalists | set(sample.tolist())))
        pairs = shift.sizes(suspect, trusted, classes, context)
        sizes = pairs.log().nanmean(1).exp()
        small = smallness(sizes, torch.isin(classes, sample), suspect.num_classes)
        easier = (pairs.nanmedian() / pairs).nan_to_num(0.0)  # (compared, all)
        every = suspect.num_classes - 1 <= shift.sources  # with more classes, two models' sources differ
        for row, target in enumerate(classes.tolist()):
            score, ratio, source = float(small.score[row]), float(small.ratio[row]), int(easier[row].argmax())
            sought = bool(sizes[row].isfinite())
            yield Finding(
                rule_id="BD001",
                score=score,
                message=(
                    f"the features move to this class {score:.2f} times as easily as ordinary classes explain, "
                    f"from class {source} {float(easier[row, source]):.2f} times as easily as in the median pair"
                ),
                detector="calibrated",
                family=shift.name,
                target_class=target,
                target_name=names.get(target),
                trigger_norm=float(sizes[row]) if sought else None,
                details={"ratio": ratio, "matched_success": shift.success}
                | ({"source": source, "source_name": names.get(source)} if sought else {}),
                by_source={names[s]: float(e) for s, e in enumerate(easier[row]) if every and float(e) > 0},
            )

    def _size(
        self, trigger: Trigger, score: float, ratio: float, rate: float, left: Sequence[float], names: Sequence[str]
    ) -> Finding:
        """BD001 of one class. rate: success of its trigger on the suspect, left: on the references."""
        family, target, source = trigger.family.name, trigger.target, trigger.source
        details: dict[str, float | int | str | bool | None] = {
            "ratio": ratio,
            "matched_success": self.search.matched(trigger.family),
        }
        whose = ""
        if source is not None:
            details |= {"source": source, "source_name": names[source]}
            whose = f", for images of ‘{names[source]}’,"
        return Finding(
            rule_id="BD001",
            score=score,
            message=(
                f"smallest {family} trigger{whose} is {score:.2f} times smaller than ordinary classes explain, "
                f"{ratio:.2f} times smaller than the median class needs"
            ),
            detector="calibrated",
            family=family,
            target_class=target,
            target_name=names[target] if target < len(names) else None,
            asr_before=rate,
            asr_after=median(left) if left else None,
            trigger_norm=trigger.size,
            details=details,
            trigger=trigger,
        )


def answers(profile: Profile, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
    """BD001 in the profile's families for every class of which they tell something; the score is e to the value."""
    names = dict(enumerate(trusted.class_names))
    controlled = {change.name for change in profile.changes if change.controlled and profile.control}
    for family, values, parts in profile.told(suspect, trusted, context):
        change = family.removeprefix(profile.name).strip("_")
        told = f"under random {change} its centred logit rises by" if change else "its centred logit is"
        beyond = ", beyond what a loss of contrast explains" if change in controlled else ""
        for target, value in enumerate(values.tolist()):
            if math.isfinite(value):
                yield Finding(
                    rule_id="BD001",
                    score=math.exp(value),
                    message=f"on clean images of other classes {told} {value:+.3f} times the right class's{beyond}",
                    detector="calibrated",
                    family=family,
                    target_class=target,
                    target_name=names.get(target),
                    by_source={part: math.exp(float(of[target])) for part, of in parts.items()},
                )


def ease(state: State, names: Sequence[str]) -> dict[int, dict[str, float]]:
    """Of pairs of classes that a trigger was found for: target -> name of the source -> how many times smaller the
    trigger is than that of the median pair."""
    found: dict[int, dict[str, float]] = {}
    if state.sources is not None and bool(state.reached.any()):
        usual = float(state.best_size[state.reached].median())
        for row in state.reached.nonzero().flatten().tolist():
            easier = found.setdefault(int(state.classes[row]), {})
            easier[names[int(state.sources[row])]] = usual / float(state.best_size[row])
    return found


def needed(state: State, ceiling: float) -> Tensor:
    """Smallest size (K,) of each class; `ceiling` where no trigger worked."""
    return torch.where(state.reached, state.best_size, ceiling)


def gap(size: Finding, left: Sequence[float]) -> Finding:
    """BD002 of the same trigger, with its success on each of the references."""
    before, after = size.asr_before or 0.0, size.asr_after or 0.0
    each = ", ".join(f"{rate:.2f}" for rate in left)
    message = f"{size.family} trigger: success {before:.2f} on the model, {each} on repaired copies of it"
    details = {**size.details, **{f"reference_{k}": rate for k, rate in enumerate(left, start=1)}}
    return replace(size, rule_id="BD002", score=before - after, message=message, details=details)


def uncompared(classes: set[int], total: int, wanted: float) -> Finding:
    """BD107: the classes for which no family found a trigger of the wanted success, so that no size is known."""
    message = f"for {len(classes)} of {total} classes no trigger reached {wanted:.0%} success"
    return Finding("BD107", float(len(classes)), message, details={"searched": total - len(classes)})


def unsearched(total: int) -> Finding:
    """BD107 where no triggers are searched for: nothing is known of any class unless clean models are there to compare
    with (calibration/scores.py)."""
    return Finding(
        "BD107", float(total), "no triggers were searched for", details={"searched": 0, "only_compared": True}
    )


def success(classifier: Classifier, trigger: Trigger, data: TrustedData, context: Context) -> float:
    """asr of `trigger` on those images of `data` that it is meant for."""
    others = trigger.meant_for(data.labels)
    stamped = trigger(data.images[others])
    return asr(predict(classifier, stamped, context), data.labels[others], trigger.target)
