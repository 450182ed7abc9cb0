"""An attempt at a repair: what was measured, and how the verdict tells it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, cast

from audit_cli.checkpoint import Checkpoint
from audit_cli.classifier import Classifier
from audit_cli.judgement import EXIT_CODES, PASS_REASON, judge, suspicion
from audit_cli.policy import Policy
from audit_cli.repairs.accusation import blended, patterns, recovered, together
from audit_cli.repairs.acquittal import Shown, asked_again
from audit_cli.repairs.drift import layer_normalised
from audit_cli.repairs.holdout import STEP, Cost, images_needed
from audit_cli.repairs.inside import Led
from audit_cli.repairs.left import through_fog
from audit_cli.repairs.relearning import Relearned
from audit_cli.repairs.trajectory import Trajectory
from audit_cli.report.document import plain
from audit_cli.report.sanitise import clean
from audit_cli.types import Context, Detector, Finding, Trigger, TrustedData, Verdict

if TYPE_CHECKING:
    from audit_cli.audit import Subject

Json = dict[str, object]
ORDER = ("PASS", "INCONCLUSIVE", "FAIL")  # of attempts, best first


@dataclass(frozen=True)
class Case:
    """What stays the same while the ladder is climbed."""

    checkpoint: Checkpoint
    subject: Subject  # the pivot
    fit: TrustedData
    holdout: TrustedData
    findings: Sequence[Finding]  # of the scan of the pivot
    policy: Policy
    detectors: Sequence[Detector]
    arch: str | None
    context: Context

    def repaired(self, classifier: Classifier) -> Subject:
        """What a rescan audits: on the holdout, by thresholds."""
        why = "the clean models of a calibration are not repaired ones"
        subject = replace(self.subject, classifier=classifier, trusted=self.holdout, choice=None)
        return replace(subject, calibration=None, uncalibrated=why)

    @property
    def convicting(self) -> list[Finding]:
        """The findings that convicted the pivot, most suspicious first."""
        items = judge(self.findings, self.policy, self.checkpoint.manifest_digest, today())[3]
        guilty = [item for item in items if item.fired and item.severity == "fail" and item.waived_by is None]
        guilty.sort(key=suspicion, reverse=True)
        return [item.finding for item in guilty]

    @property
    def triggers(self) -> list[Trigger]:
        """The triggers that convicted the pivot and that a repaired model is shown again, most suspicious first."""
        return recovered(self.convicting)

    def through_fog(self, classifier: Classifier, data: TrustedData, *, alone: bool = False) -> float | None:
        """What thin fog shows of the blended patterns that convicted the pivot, or without them, `alone`; None where
        there are none, and of transformers, which are not taught in fog."""
        if layer_normalised(self.subject.classifier):
            return None
        shown = [] if alone else patterns(self.convicting)
        return through_fog(classifier, shown, blended(self.convicting), data, self.context)

    @property
    def retested(self) -> bool:
        """Is anything that convicted the pivot looked at again? A trigger is, what a random change shows, and what a
        threshold would convict, since the rescan has thresholds."""
        convicting = self.convicting
        by_threshold = [f for f in convicting if not self.compared(f)]
        return bool(self.triggers or by_threshold or asked_again(convicting))

    def compared(self, finding: Finding) -> bool:
        """Does this finding, which convicts, do so beside clean models only, under its threshold?"""
        rule = self.policy.rules.get(finding.rule_id)
        over = rule is not None and finding.score >= rule.limit(finding.family)
        return finding.p_value is not None and not over


@dataclass(frozen=True)
class Attempt:
    """One rung's result, all of it measured on the holdout."""

    rung: str
    classifier: Classifier  # read back from what was written
    findings: Sequence[Finding]  # of the rescan; none when the objections alone decide
    verdict: str  # of the rescan; FAIL with objections, INCONCLUSIVE with doubts
    cost: Cost  # of clean accuracy
    asr_before: float | None  # the largest of the triggers recovered from the pivot
    asr: float | None
    inside: Led | None  # the same of their features, moved further inside the network
    through_fog: float | None  # share of images in thin fog that end in the class of a blended pattern
    shown: tuple[Shown, ...]  # of the classes that random changes alone convicted, under these
    objections: tuple[str, ...]  # what keeps it from passing, besides the rescan
    doubts: tuple[str, ...]  # why it cannot be told whether it passes
    curve: Trajectory
    share: float = 1.0  # of the way to what the rung made

    @property
    def passes(self) -> bool:
        return self.verdict == "PASS"

    @property
    def told(self) -> Json:
        """Its figures, and why it does not pass, a line each."""
        refused = (
            [] if self.passes or self.objections or self.doubts else [f"the audit of it ended with {self.verdict}"]
        )
        return {
            "method": self.rung,
            "cda_drop": self.cost.drop[0],
            "asr": self.asr,
            "asr_inside": self.inside and self.inside.share,
            "asr_in_fog": self.through_fog,
            "p_value": min((shown.p for shown in self.shown), default=None),
            "score": highest(self.findings),
            "objections": [*self.objections, *self.doubts, *refused],
        }

    def rank(self, policy: Policy) -> tuple[int, int, float, float]:
        """Smaller is better: the verdict; fewer objections; how far over the limits; what is left of the triggers."""
        asr = self.asr or 0.0
        over = max(0.0, self.cost.drop[0] - policy.max_drop) + max(0.0, asr - policy.max_asr)
        return ORDER.index(self.verdict), len(self.objections), over, asr


def today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()


def highest(findings: Sequence[Finding]) -> float | None:
    """The largest score of BD001 among `findings`."""
    return max((finding.score for finding in findings if finding.rule_id == "BD001"), default=None)


def rows(best: Attempt) -> str:
    """Lines of a Markdown table: what, before, after."""
    asr = "–" if best.asr is None or best.asr_before is None else f"{best.asr_before:.1%} | {best.asr:.1%}"
    lines = [f"| clean accuracy | {best.cost.before:.1%} | {best.cost.after:.1%} |"]
    return "\n".join([*lines, f"| success of the recovered triggers | {asr} |"] if asr != "–" else lines)


def account(
    case: Case,
    attempts: Sequence[Attempt],
    best: Attempt,
    about: Verdict,
    output: Json | None,
    relearned: Relearned | None = None,
) -> Verdict:
    """The verdict `about` the written model, or about the pivot when nothing was written (`output` is None), with what
    was tried, what the `best` of the attempts did and what speaks against it."""
    own = [reason for reason in about.reasons if reason != PASS_REASON or best.passes]
    origin = f"repaired by {best.rung} from the model with manifest {case.checkpoint.manifest_digest}"
    origin += f", {case.checkpoint.origin.name}" if case.checkpoint.origin else ""
    what = "no repair passed" if best.verdict == "FAIL" else "whether a repair passes cannot be told"
    lead = f"{what}, so no weights were written; the best was {best.rung}"
    reasons = [lead] if output is None else []
    reasons += [*best.objections, *best.doubts, *own, *([] if output is None else [origin])]
    drop, *interval = best.cost.drop
    section: Json = {
        "method": best.rung,
        "before": {"cda": best.cost.before, "asr": best.asr_before, "score": highest(case.findings)},
        "after": {"cda": best.cost.after, "asr": best.asr, "score": highest(best.findings)},
        "convicted": [_convicting(finding) for finding in case.convicting],
        "cda_drop": drop,
        "cda_drop_interval": interval,
        "output": output,
        "attempts": [attempt.told for attempt in attempts],
        "relearning": None if relearned is None else asdict(relearned),
    }
    verdict = about.verdict if best.passes else best.verdict
    limits = [_halves(case), *_unmeasured(case), *unheard(case.convicting), *_compared(case), *_resolution(case, best)]
    if case.triggers and relearned is None:
        limits.append(
            "How fast the recovered trigger is learnt again was not measured: the time or memory was used up."
        )
    return amended(about, verdict, list(dict.fromkeys(reasons)), section, limits)


def _convicting(finding: Finding) -> Json:
    return {
        "rule_id": finding.rule_id,
        "target_class": finding.target_class,
        "target_name": finding.target_name,
        "family": finding.family,
        "score": finding.score,
        "p_value": finding.p_value,
    }


def unchanged(case: Case, about: Verdict, cda: float, asr: float | None, output: Json) -> Verdict:
    """The verdict on a model that needed no repair."""
    same: Json = {"cda": cda, "asr": asr, "score": highest(case.findings)}
    section: Json = {
        "method": "none: the model passed its scan and was copied unchanged",
        "before": same,
        "after": same,
        "cda_drop": 0.0,
        "cda_drop_interval": [0.0, 0.0],
        "output": output,
    }
    return amended(about, about.verdict, [*about.reasons, "nothing to repair: the weights are unchanged"], section, [])


def amended(about: Verdict, verdict: str, reasons: Sequence[str], section: Json, limits: Sequence[str]) -> Verdict:
    code = EXIT_CODES[verdict]
    known = cast(Sequence[str], about.document["limitations"])
    document = {**about.document, "verdict": verdict, "exit_code": code, "reasons": list(reasons)}
    document |= {"repair": plain(section), "limitations": [*known, *limits]}
    return Verdict(verdict, code, tuple(reasons), about.findings, document)


def _halves(case: Case) -> str:
    return (
        f"{len(case.fit)} of the trusted images were used for the repair; accuracy and what is left of the backdoor "
        f"were measured on the other {len(case.holdout)}, accuracy also on these moved by 1/{round(1 / STEP)} of a "
        "side or in the mirror. Its drop counts how sure the two models are, too, so it need not be the difference of "
        "their accuracies."
    )


def _unmeasured(case: Case) -> list[str]:
    """Said when no trigger has convicted the pivot: a Refool of `unseen-s` passes with most of its success left."""
    if case.triggers:
        return []
    line = (
        "No trigger convicted the model, so there is none whose success could be measured after the repair: how much "
        "of the backdoor is left is not known, and it can be most of it."
    )
    return [line]


def unheard(convicting: Sequence[Finding]) -> list[str]:
    """Said of what convicted the pivot and is taken to be an ordinary class beside the target."""
    heard = {id(finding) for finding in together(convicting)}
    return [
        f"Class {clean(finding.target_name or '', 60)!r} was convicted, too, but by {finding.family} alone, and only "
        "beside clean models, while several kinds of evidence name another class: it was neither taught nor looked at "
        "again."
        for finding in convicting
        if id(finding) not in heard
    ]


def _compared(case: Case) -> list[str]:
    """Said when clean models have decided about the pivot."""
    if case.subject.calibration is None:
        return []
    line = (
        "The repaired model was judged by thresholds, and by what random changes had shown; a scan that compares "
        "everything with clean models can still find it unusual: on unchanged images it answers as before."
    )
    return [line]


def _resolution(case: Case, best: Attempt) -> list[str]:
    """Said when the interval of the accuracy drop reaches past what the policy allows."""
    drop, low, high = best.cost.drop
    limit = case.policy.max_drop
    if high <= limit or drop > limit:
        return []
    needed = images_needed(limit - max(drop, 0.0), best.cost.disagreement) if drop < limit else None
    remedy = f"; about {needed} held-out images would bound it" if needed else ""
    line = (
        f"The accuracy drop of {100 * drop:.1f} points has the 95 % interval {100 * low:.1f} to {100 * high:.1f}, "
        f"which reaches past the {100 * limit:g} points allowed{remedy}."
    )
    return [line]
