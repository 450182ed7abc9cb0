"""The order of a repair: who is called when.

scan the pivot -> for each rung: repair(pivot, fit) -> write -> read back -> rescan on the holdout -> judge -> publish

Half the trusted images tune, the other half measures. What is audited is the written file, read back as a stranger's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from audit_cli import audit, models
from audit_cli.audit import conclude, feed
from audit_cli.calibration import RULE
from audit_cli.checkpoint import Checkpoint, locate, open_checkpoint
from audit_cli.checkpoint.private import private_directory
from audit_cli.checkpoint.save import write_atomically
from audit_cli.classifier import Classifier
from audit_cli.data import Preprocessing, read_images
from audit_cli.detectors import DETECTORS
from audit_cli.detectors.scope import UNCALIBRATED
from audit_cli.errors import BudgetExceeded, UsageError
from audit_cli.judgement import judge
from audit_cli.metrics import cda, classes_of, predict
from audit_cli.models import Prompts
from audit_cli.policy import Policy
from audit_cli.repairs.acquittal import shown_again, still_risen
from audit_cli.repairs.attempt import Attempt, Case, account, rows, today, unchanged
from audit_cli.repairs.climbing import Climbing
from audit_cli.repairs.drift import layer_normalised
from audit_cli.repairs.holdout import cost, divide
from audit_cli.repairs.inside import against, left_inside
from audit_cli.repairs.ladder import LADDER, Rung
from audit_cli.repairs.left import strongest
from audit_cli.repairs.output import (
    EVIDENCE,
    EVIDENCE_BEFORE,
    README,
    VERDICT,
    carried,
    carry_over,
    check_destination,
    copy_configs,
    copy_model,
    model_card,
    staged,
    write_model,
)
from audit_cli.repairs.relearning import Relearned, Relearning
from audit_cli.repairs.trajectory import Trajectory
from audit_cli.report.evidence import save_pictures
from audit_cli.report.json import render
from audit_cli.runtime import Stopwatch
from audit_cli.types import Context, Detector, Finding, Verdict

CURVES = "trade-off.json"
UNTESTED = (
    "what convicted the model leaves no trigger and no random change that could be tried again, and no threshold would "
    "convict it, so it cannot be told whether the repair removed it"
)


def repair(
    model: Path | str,
    trusted: Path,
    out: Path,
    *,
    policy: Policy | None = None,
    arch: str | None = None,
    weights: str | None = None,
    prompts: Prompts | None = None,
    preprocessing: Preprocessing | None = None,
    auto: bool = False,
    split: str = "test",
    ladder: Sequence[Rung] = LADDER,
    detectors: Sequence[Detector] = (),
    context: Context | None = None,
    keep_failed: bool = False,
    allow_download: bool = False,
) -> Verdict:
    """Repairs the checkpoint at `model` and writes the folder `out`, whole or not at all.

    A model that passes its scan is copied unchanged. Otherwise the rungs of `ladder` are tried until one passes a scan
    with a fresh seed and the policy's limits on the drop of clean accuracy and on the recovered triggers' success. Then
    `out` holds the weights, the verdict on them, evidence and a model card; when none passes, the verdict on `model`
    and the evidence only, unless `keep_failed`. Other arguments as in `scan`.
    Raises UnsupportedError when the trusted images are too few to repair and judge with, and AuditError as `scan` does.
    """
    policy = policy or Policy.load("default")
    check_destination(out)
    context = context or Context()
    watch = Stopwatch(context.progress)
    context = replace(context, progress=watch)
    source = locate(model, weights or policy.weights, allow_download=allow_download, context=context)
    policy.refuse_inside(source.path)
    if source.path.is_dir() and out.resolve().is_relative_to(source.path.resolve()):
        raise UsageError(f"{out}: lies inside the model; give a folder elsewhere")
    detectors = detectors or [DETECTORS["calibrated"]()]
    context.progress.stage("checkpoint", 1)
    check = context.budget.check
    with open_checkpoint(source.path, weights=source.weights, check=check, origin=source.origin) as checkpoint:
        raw = read_images(trusted, split=split)
        classifier = models.build(checkpoint, arch=arch, prompts=prompts, class_names=raw.class_names)
        context.progress.stage("trusted data", 1)
        fed = feed(classifier, raw, checkpoint, preprocessing, context, auto)
        subject = audit.calibrated(fed, policy, detectors, context)
        parts = context.generator(stream=9)
        fit, holdout = divide(subject.trusted, policy.max_drop, policy.min_per_class, parts, policy.min_images)
        carried(checkpoint)
        with staged(out) as folder:
            found = audit.examine(subject, checkpoint.unaudited, policy, detectors, context)
            found = save_pictures(found, subject.trusted, folder / EVIDENCE_BEFORE)
            case = Case(checkpoint, subject, fit, holdout, found, policy, detectors, arch, context)
            verdict = _act(case, ladder, folder, keep_failed, watch)
            write_atomically(folder / VERDICT, render(verdict))
    return verdict


def _act(case: Case, ladder: Sequence[Rung], folder: Path, keep_failed: bool, watch: Stopwatch) -> Verdict:
    """Fills `folder`, verdict excepted, as the scan of the pivot demands."""
    first = conclude(case.checkpoint, case.subject, case.findings, case.policy, case.context, watch)
    if first.verdict == "PASS":
        copy_model(case.checkpoint, folder)
        carry_over(case.checkpoint, folder)
        accuracy = cda(predict(case.subject.classifier, case.holdout.images, case.context), case.holdout.labels)
        return unchanged(case, first, accuracy, None, _manifest(case.checkpoint))
    if first.verdict != "FAIL":
        return first
    attempts = Climbing(case, examine)(ladder)
    best = attempts[-1] if attempts[-1].passes else min(attempts, key=lambda attempt: attempt.rank(case.policy))
    relearned = relearn(case, best)
    curves = {attempt.rung: [asdict(point) for point in attempt.curve.points] for attempt in attempts}
    (folder / EVIDENCE).mkdir()
    write_atomically(folder / EVIDENCE / CURVES, json.dumps(curves, indent=1) + "\n")
    if not (best.passes or keep_failed):
        about = conclude(case.checkpoint, case.subject, case.findings, case.policy, case.context, watch)
        return account(case, attempts, best, about, None, relearned)
    write_model(case.checkpoint, best.classifier, folder)
    carry_over(case.checkpoint, folder)
    best = best if best.findings else replace(best, findings=rescan(case, best.classifier, case.context))
    findings = save_pictures(best.findings, case.holdout, folder / EVIDENCE)
    subject = case.repaired(best.classifier)
    with open_checkpoint(_opens(case.checkpoint, folder)) as written:
        about = conclude(written, subject, findings, case.policy, case.context, watch)
        verdict = account(case, attempts, best, about, _manifest(written), relearned)
    card = model_card(folder / README, best.rung, case.checkpoint.manifest_digest, rows(best), verdict.verdict)
    write_atomically(folder / README, card)
    return verdict


def _manifest(checkpoint: Checkpoint) -> dict[str, object]:
    return {"manifest_digest": checkpoint.manifest_digest, "files": [asdict(file) for file in checkpoint.files]}


def _opens(checkpoint: Checkpoint, folder: Path) -> Path:
    """What to open in `folder` for the counterpart of `checkpoint`: a file for a file, a folder for a folder."""
    return folder if checkpoint.source.is_dir() else folder / checkpoint.files[0].path


def examine(case: Case, rung: str, tuned: Classifier, curve: Trajectory, context: Context) -> Attempt:
    """Audits what would be delivered: the tuned weights as written and read back, on images no repair has seen. Nothing
    is scanned again where the accuracy, the recovered triggers or random changes already speak against it. Transformers
    are asked neither inside nor through fog, in which they are not taught, either."""
    repaired, holdout, policy = read_back(case, tuned), case.holdout, case.policy
    pivot = case.subject.classifier
    price = cost(pivot, repaired, holdout, context)
    answers = classes_of(predict(pivot, holdout.images, context))
    left = strongest(repaired, case.triggers, holdout, context, answers)
    objections = []
    if price.exceeds(policy.max_drop):
        objections.append(
            f"clean accuracy dropped by {100 * price.drop[0]:.1f} points, {100 * policy.max_drop:g} allowed"
        )
    if left is not None and left > policy.max_asr:
        objections.append(f"a recovered trigger still succeeds on {left:.1%} of images, {policy.max_asr:.0%} allowed")
    inside = None if layer_normalised(pivot) else left_inside(pivot, repaired, case.triggers, holdout, context, answers)
    in_fog = case.through_fog(repaired, holdout)
    led, untold = against(inside, policy.max_asr_inside)
    objections += led
    if in_fog is not None and in_fog > policy.max_asr_inside:
        objections.append(
            f"through thin fog {in_fog:.1%} of images still end in a class that was convicted, "
            f"{policy.max_asr_inside:.0%} allowed"
        )
    shown = shown_again(case.convicting, repaired, holdout, case.subject.calibration, context, price.views)
    objections += still_risen(shown, policy.rules[RULE].alpha)
    findings = [] if objections else rescan(case, repaired, context)
    verdict, doubts = ("FAIL", ()) if objections else judged(case, findings, untold)
    return Attempt(
        rung=rung,
        classifier=repaired,
        findings=findings,
        verdict=verdict,
        cost=price,
        asr_before=strongest(pivot, case.triggers, holdout, context, answers),
        asr=left,
        inside=inside,
        through_fog=in_fog,
        shown=tuple(shown),
        objections=tuple(objections),
        doubts=doubts,
        curve=curve,
    )


def judged(case: Case, findings: Sequence[Finding], doubts: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The verdict of a rescan, and where that is INCONCLUSIVE the reasons. doubts: others than the rescan's."""
    verdict, _, reasons, _ = judge(findings, case.policy, "", today())
    if verdict == "PASS" and not case.retested:
        doubts = [*doubts, UNTESTED]
    if verdict == "PASS" and doubts:
        return "INCONCLUSIVE", tuple(doubts)
    return verdict, reasons if verdict == "INCONCLUSIVE" else ()


def rescan(case: Case, repaired: Classifier, context: Context) -> list[Finding]:
    """What the detectors say of a repaired model, on the holdout. No calibration can hold, since its models are not
    repaired, so that there is none is not held against it: what convicted the pivot is asked again instead.
    Weight files that lay beside the pivot do not lie beside what is delivered."""
    subject = case.repaired(repaired)
    findings = audit.examine(subject, (), case.policy, case.detectors, context)
    return [finding for finding in findings if finding.rule_id != UNCALIBRATED]


def read_back(case: Case, tuned: Classifier) -> Classifier:
    """The classifier that a stranger gets from the files `tuned` is written to."""
    with private_directory() as folder:
        write_model(case.checkpoint, tuned, folder)
        copy_configs(case.checkpoint, folder)
        with open_checkpoint(_opens(case.checkpoint, folder)) as written:
            prompts = models.prompts_of(case.subject.classifier)
            fresh = models.build(written, arch=case.arch, prompts=prompts).on(case.context.device)
    mean, std = case.subject.preprocessing.mean, case.subject.preprocessing.std
    assert mean is not None and std is not None  # noqa: PT018, S101 - feed has settled them
    return fresh.with_normalisation(mean, std)


def relearn(case: Case, best: Attempt) -> Relearned | None:
    """How fast the worst of the recovered triggers comes back; None where there is none, or no time left for it."""
    if not case.triggers:
        return None
    try:
        return Relearning()(best.classifier, case.triggers[0], case.fit, case.holdout, case.context)
    except BudgetExceeded:
        return None
