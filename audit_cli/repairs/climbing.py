"""Up the ladder: which repair is tried when, how far back a costly one is taken, and where a passing one is eased.

What an attempt is worth is for somebody else to say: `examine` audits it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from audit_cli.calibration import RULE
from audit_cli.classifier import Classifier
from audit_cli.repairs.accusation import by_clean_models, filling, told
from audit_cli.repairs.acquittal import another_shows
from audit_cli.repairs.attempt import Attempt, Case
from audit_cli.repairs.drift import layer_normalised
from audit_cli.repairs.inside import left_inside
from audit_cli.repairs.ladder import EASED, FURTHER, SLIGHTLY, Rung
from audit_cli.repairs.partway import partway
from audit_cli.repairs.trajectory import Trajectory
from audit_cli.repairs.unlearning import Survey, Unlearning
from audit_cli.repairs.watch import WatchedRepair
from audit_cli.types import Context, Finding


class Examine(Protocol):
    """Audits tuned weights; `rung` names the attempt."""

    def __call__(self, case: Case, rung: str, tuned: Classifier, curve: Trajectory, context: Context) -> Attempt: ...


@dataclass(frozen=True)
class Climbing:
    """The attempts to repair one model."""

    case: Case
    examine: Examine

    def __call__(self, ladder: Sequence[Rung]) -> list[Attempt]:
        """Attempts, the last one being the first that passes, where one does, or what that is `eased` to, or the first
        of which it cannot be told: a stronger repair would not change that. A rung that would teach what one before has
        taught is passed over. Once a rescan has failed one, what is over its threshold in the pivot is taught as well,
        on the same rung again: the rescan has thresholds. At once it costs more than it brings beside a patch. Where
        several kinds of random change convict a class, and no trigger, the oddest is taught alone, and all of them on
        the same rung again once another still shows after one (fixtures/results/repair.md)."""
        case, pivot, attempts = self.case, self.case.subject.classifier, list[Attempt]()
        wholes: list[tuple[Attempt, Context]] = []
        at_once = () if layer_normalised(pivot) else SLIGHTLY
        surveyed: Survey | None = None
        rungs, silent, every_kind = self._suited(ladder), by_clean_models, False
        lessons = list[WatchedRepair]()
        while rungs:
            rung = rungs.pop(0)
            repair = self._told(rung, silent, every_kind)
            if repair in lessons:
                continue
            lessons.append(repair)
            context = replace(case.context, seed=case.context.seed + 1_000 * (len(wholes) + 1))
            curve = Trajectory(pivot, case.holdout, context)
            if isinstance(repair, Unlearning):
                surveyed = surveyed or repair.survey(pivot, case.fit, context)
                repair = replace(repair, surveyed=surveyed)
            tuned = repair(pivot, case.fit, context, curve)
            again = replace(context, seed=context.seed + 500)
            wholes.append((self.examine(case, rung.name, tuned, curve, again), again))
            attempts += self._taken_back(*wholes[-1], at_once)
            if attempts[-1].verdict != "FAIL":
                return [*attempts[:-1], *self._eased(attempts[-1], *wholes[-1])]
            if attempts[-1].findings and silent is by_clean_models:
                silent = case.compared
                rungs.insert(0, replace(rung, name=f"{rung.name}, heeding thresholds"))
            elif not every_kind and another_shows(wholes[-1][0].shown, case.policy.rules[RULE].alpha):
                every_kind, surveyed = True, None
                rungs.insert(0, replace(rung, name=f"{rung.name}, every kind"))
        for whole, context in [] if layer_normalised(pivot) else wholes:
            attempts += self._taken_back(whole, context, FURTHER)[1:]
            if attempts[-1].verdict != "FAIL":
                return [*attempts[:-1], *self._eased(attempts[-1], whole, context)]
        return attempts

    def _suited(self, ladder: Sequence[Rung]) -> list[Rung]:
        """The rungs; of a pivot that fog alone leads to the class of a blended pattern those in fog, if there are."""
        led = self.case.through_fog(self.case.subject.classifier, self.case.fit, alone=True)
        if led is None or led <= self.case.policy.max_asr_inside:
            return list(ladder)
        foggy = [rung for rung in ladder if getattr(self._told(rung, by_clean_models, False), "fog", 0.0)]
        return foggy or list(ladder)

    def _told(self, rung: Rung, silent: Callable[[Finding], bool], every_kind: bool) -> WatchedRepair:
        """The repair of `rung`, told what the scan says and suited to the network. silent: `compared` in `told`."""
        subject = self.case.subject
        repair = told(rung.repair, self.case.convicting, subject.trusted.class_names, silent, every_kind)
        return repair.suited(subject.classifier) if isinstance(repair, Unlearning) else repair

    def _taken_back(self, whole: Attempt, context: Context, shares: Sequence[float]) -> list[Attempt]:
        """`whole`, and attempts part of the way to it as long as the last one costs too much accuracy."""
        attempts = [whole]
        for share in shares:
            if not attempts[-1].cost.exceeds(self.case.policy.max_drop):
                break
            attempts.append(self._less_far(whole, share, context))
        return attempts

    def _eased(self, passed: Attempt, whole: Attempt, context: Context) -> list[Attempt]:
        """`passed`, and where patterns that fill the image convict alone, attempts that go less far to `whole`, as long
        as they pass, cost much of what may be lost, and lead no more images inside the network than may be led at the
        image. One that does not pass comes before the last, which does. Of such a pattern hardly more is left so, for
        less accuracy; of a patch more is left before it shows (fixtures/results/repair.md)."""
        case, pivot = self.case, self.case.subject.classifier
        found: list[Attempt] = [passed]
        refused: list[Attempt] = []
        if passed.passes and filling(case.convicting) and not layer_normalised(pivot):
            for share in (share for share in EASED if share < passed.share):
                near = partway(pivot, whole.classifier, share).frozen()
                led = left_inside(pivot, near, case.triggers, case.holdout, context)
                dear = found[-1].cost.exceeds(case.policy.max_drop / 4)
                if led is None or led.share > case.policy.max_asr or not dear:
                    break
                less = self._less_far(whole, share, context)
                if not less.passes:
                    refused = [less]
                    break
                found.append(less)
        return [*found[:-1], *refused, found[-1]]

    def _less_far(self, whole: Attempt, share: float, context: Context) -> Attempt:
        """The attempt that goes only a `share` of the way to `whole`."""
        pivot = self.case.subject.classifier
        less = partway(pivot, whole.classifier, share)
        fresh = replace(context, seed=context.seed + round(100 * share))
        curve = Trajectory(pivot, self.case.holdout, fresh)
        curve(0, less)
        name = f"{whole.rung}, {share:.0%} of the way"
        return replace(self.examine(self.case, name, less, curve, fresh), share=share)
