"""The order of an audit, and nothing else: who is called when.

checkpoint -> Classifier -> sanity gate -> detectors(classifier, trusted) -> [Finding] -> judge -> Verdict
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audit_cli import models
from audit_cli.calibration import RULE, Calibration, Domain, candidates, with_p_values
from audit_cli.checkpoint import Checkpoint, locate, manifest, open_checkpoint
from audit_cli.classifier import Classifier, Encoder
from audit_cli.data import Choice, Preprocessing, RawImages, choose, from_config, prepare, read_images
from audit_cli.detectors import DETECTORS
from audit_cli.detectors.calibrated import Calibrated
from audit_cli.detectors.encoder import Collapse
from audit_cli.detectors.profile import Profile
from audit_cli.detectors.sanity import DETECTOR as GATE
from audit_cli.detectors.sanity import sanity
from audit_cli.detectors.scope import scope
from audit_cli.errors import AuditError, BudgetExceeded, DataError, UsageError
from audit_cli.inversion import FAMILIES
from audit_cli.judgement import judge
from audit_cli.metrics import cda, overconfidence, predict
from audit_cli.models import Prompts
from audit_cli.policy import Policy
from audit_cli.report.document import NOT_CALIBRATED, build_document
from audit_cli.report.evidence import save_pictures
from audit_cli.report.sanitise import clean
from audit_cli.resources import bundled_calibrations
from audit_cli.runtime import Stopwatch, environment
from audit_cli.types import Context, Detector, Finding, TrustedData, Verdict


@dataclass(frozen=True)
class Subject:
    """A model and its trusted images, ready to be measured, and how the one was fed to the other."""

    classifier: Classifier
    trusted: TrustedData
    preprocessing: Preprocessing
    choice: Choice | None  # what `auto` tried; None when the normalisation was given
    calibration: Calibration | None = None  # of models of this kind, by the detectors in use
    uncalibrated: str = "no clean models of this kind have been scored"  # why there is none


def load(
    model: Path | str,
    *,
    arch: str | None = None,
    weights: str | None = None,
    prompts: Prompts | None = None,
    allow_download: bool = False,
) -> Classifier:
    """The network in the checkpoint at `model`, without a normalisation; as `scan` opens it, and with its errors."""
    found = locate(model, weights, allow_download=allow_download)
    with open_checkpoint(found.path, weights=found.weights, origin=found.origin) as checkpoint:
        return models.build(checkpoint, arch=arch, prompts=prompts)


def scan(
    model: Path | str,
    trusted: Path,
    *,
    policy: Policy | None = None,
    arch: str | None = None,
    weights: str | None = None,
    prompts: Prompts | None = None,
    preprocessing: Preprocessing | None = None,
    auto: bool = False,
    split: str = "test",
    detectors: Sequence[Detector] = (),
    context: Context | None = None,
    evidence: Path | None = None,
    allow_download: bool = False,
) -> Verdict:
    """Audits the checkpoint at `model` with the images at `trusted`, labelled unless the model is a bare encoder.

    model: a path, or `hf:org/name@revision`, which without `allow_download` must be in the local Hugging Face cache.
    policy: the default one when None. arch: how to build a model that is not recognised. weights: the file to audit
    where the folder has several. prompts: labels and templates for a CLIP model; without labels, the class names of
    the trusted images are the labels, and where these have none it is audited as a bare encoder. preprocessing: as
    stated by the user; else the checkpoint's own, else tried out. auto: try the usual normalisations, whatever the
    checkpoint says. split: which part of an archive with several. detectors: the default one for such a model when
    empty. evidence: folder for pictures of the recovered triggers, none when None.
    Raises AuditError for whatever cannot be audited.
    """
    policy = policy or Policy.load("default")
    context = context or Context()
    watch = Stopwatch(context.progress)
    context = replace(context, progress=watch)
    found = locate(model, weights or policy.weights, allow_download=allow_download, context=context)
    policy.refuse_inside(found.path)
    context.progress.stage("checkpoint", 1)
    check = context.budget.check
    with open_checkpoint(found.path, weights=found.weights, check=check, origin=found.origin) as checkpoint:
        raw = read_images(trusted, split=split, unlabelled=True)
        classifier = models.build(checkpoint, arch=arch, prompts=prompts, class_names=raw.class_names, bare=True)
        detectors = suited(detectors, classifier, raw)
        context.progress.stage("trusted data", 1)
        subject = feed(classifier, raw, checkpoint, preprocessing, context, auto)
        subject = calibrated(subject, policy, detectors, context)
        findings = examine(subject, checkpoint.unaudited, policy, detectors, context)
        if manifest(found.path, found.weights)[1] != checkpoint.manifest_digest:
            raise AuditError(f"{clean(str(model))}: changed while it was audited; audit it again when it is complete")
        if evidence is not None:
            findings = save_pictures(findings, subject.trusted, evidence)
        return conclude(checkpoint, subject, findings, policy, context, watch)


def suited(detectors: Sequence[Detector], classifier: Classifier, raw: RawImages) -> Sequence[Detector]:
    """The detectors, the default one when none; UsageError where model, data and detectors do not go together."""
    if isinstance(classifier, Encoder):
        if not all(isinstance(detector, Collapse) for detector in detectors):
            raise UsageError("an encoder without classes has --detector encoder only; for others, give --labels FILE")
        return detectors or [DETECTORS["encoder"]()]
    if not raw.labelled:
        raise DataError(f"{raw.source}: images without labels; a classifier is audited with labelled ones")
    return detectors or [DETECTORS["calibrated"]()]


def feed(
    classifier: Classifier,
    raw: RawImages,
    checkpoint: Checkpoint,
    stated: Preprocessing | None,
    context: Context,
    auto: bool = False,
) -> Subject:
    """Brings the images to the model's size and the normalisation into the model.

    What the user states wins, then the checkpoint's preprocessor config, which is not looked at when that leaves
    nothing open; what neither says is tried out, and with `auto` the normalisation always is.
    """
    settled = stated is not None and stated.size is not None and (auto or stated.mean is not None)
    config = None if settled else checkpoint.preprocessor
    own = None if config is None else from_config(config, checkpoint.preprocessor_file)
    fallback = Preprocessing.for_size(classifier.size, "architecture") if classifier.size else Preprocessing()
    geometry = stated if stated and stated.size else own or fallback
    data = prepare(raw, geometry, classifier.labels)
    given = None if auto else next((p for p in (stated, own) if p and p.mean is not None), None)
    classifier = classifier.on(context.device)
    if given is None and isinstance(classifier, Encoder):
        raise UsageError("without labels no normalisation can be tried out; pass --mean and --std")
    if given is None:
        context.progress.stage("normalisation", 1)
        choice = choose(classifier, data, context)
        mean, std, source = choice.normalisation.mean, choice.normalisation.std, f"auto: {choice.name}"
    else:
        assert given.mean is not None and given.std is not None  # noqa: PT018, S101 - Preprocessing has both or none
        choice, mean, std, source = None, given.mean, given.std, given.source
    fed = replace(geometry, mean=mean, std=std, source=source)
    return Subject(classifier.with_normalisation(mean, std), data, fed, choice)


def calibrated(subject: Subject, policy: Policy, detectors: Sequence[Detector], context: Context) -> Subject:
    """The subject with a calibration of its kind that admits it, where there is one for these detectors: one of the
    policy's before those of the package, and of several the one whose models reach nearest to its accuracy."""
    domain, alpha = Domain.of(subject.classifier, subject.trusted), policy.rules[RULE].alpha
    if domain.ambiguous:
        return replace(subject, uncalibrated="two classes have the same name")
    found = [candidates(files, domain, detectors) for files in (policy.calibrations, bundled_calibrations())]
    known = [[calibration for calibration in some if calibration.resolves(alpha)] for some in found]
    if any(found) and not any(known):
        return replace(subject, uncalibrated=f"too few clean models have been scored for a p-value of {alpha:g}")
    if not any(known):
        return subject
    outputs, labels = predict(subject.classifier, subject.trusted.images, context), subject.trusted.labels
    accuracy, sure = cda(outputs, labels), overconfidence(outputs, labels)
    moved = Profile().moved(subject.classifier, subject.trusted, context)
    refusals = []
    for some in known:
        for calibration in sorted(some, key=lambda calibration: calibration.away(accuracy)):
            refusal = calibration.refusal(accuracy, len(subject.trusted), moved, sure)
            if refusal is None:
                return replace(subject, calibration=calibration)
            refusals.append(refusal)
    return replace(subject, uncalibrated=refusals[0])


def examine(
    subject: Subject, unaudited: Sequence[str], policy: Policy, detectors: Sequence[Detector], context: Context
) -> list[Finding]:
    """What the detectors find, how rare it is among clean models of this kind, and what was left out. unaudited: weight
    files beside the audited ones."""
    findings = with_p_values(measure(subject, policy, detectors, context), subject.calibration)
    searched = {finding.family for finding in findings}
    usual = Calibrated().searched(subject.trusted, subject.classifier.num_classes)
    return findings + scope(unaudited, searched, usual, None if subject.calibration else subject.uncalibrated)


def measure(subject: Subject, policy: Policy, detectors: Sequence[Detector], context: Context) -> list[Finding]:
    """The sanity gate, and when the policy sees nothing wrong there, every detector.

    A used-up budget keeps what was found before it. A detector that fails loses its own findings, not the others';
    unless those convict the model, its error is raised at the end: a crash is never a verdict.
    """
    context.progress.stage("sanity", 1)
    findings: list[Finding] = []
    failures: list[Exception] = []
    try:
        findings += sanity(
            subject.classifier,
            subject.trusted,
            context,
            stated=subject.preprocessing.source,
            choice=subject.choice,
            min_images=policy.min_images,
            min_per_class=policy.min_per_class,
        )
        for detector in detectors if _verdict(findings, policy) == "PASS" else ():
            before = len(findings)
            try:
                for finding in detector(subject.classifier, subject.trusted, context):
                    findings.append(finding)
            except BudgetExceeded:
                raise
            except Exception as error:  # noqa: BLE001 - kept, and raised below unless others convict
                failures.append(error)
                reason = f"detector {type(detector).__name__} failed: {type(error).__name__}: {error}"
                findings[before:] = [Finding("BD109", 1.0, reason, type(detector).__name__)]
    except BudgetExceeded as error:
        findings.append(Finding("BD108", 1.0, str(error), "budget"))
    if failures and _verdict(findings, policy) != "FAIL":
        raise failures[0]
    if not any(policy.convicts(finding.rule_id) and finding.detector != GATE for finding in findings):
        unsearched = float(max(1, subject.classifier.num_classes))  # an encoder has no classes to count
        findings.append(Finding("BD107", unsearched, "no rule that can convict was measured", "scope"))
    return findings


def conclude(
    checkpoint: Checkpoint,
    subject: Subject,
    findings: Sequence[Finding],
    policy: Policy,
    context: Context,
    watch: Stopwatch,
) -> Verdict:
    """What the policy says of the findings, with everything needed to check it."""
    now = datetime.datetime.now(datetime.UTC)
    judged = judge(findings, policy, checkpoint.manifest_digest, now.date())
    accuracy = next((f.details.get("accuracy") for f in findings if f.rule_id == "BD101"), None)
    families = sorted({f.family for f in findings} & set(FAMILIES))
    prompts, calibration = models.prompts_of(subject.classifier), subject.calibration
    unknown = NOT_CALIBRATED | {"statement": f"{subject.uncalibrated}: nobody knows how often a clean one would fail"}
    document = build_document(
        judged,
        policy=policy,
        arch=subject.classifier.arch,
        files=checkpoint.files,
        manifest_digest=checkpoint.manifest_digest,
        unaudited=checkpoint.unaudited,
        trusted=subject.trusted,
        accuracy=None if accuracy is None else float(accuracy),
        classes=subject.classifier.num_classes,
        searched=sum(int(f.details.get("searched") or 0) for f in findings if f.rule_id == "BD107"),
        trigger_families=families,
        environment=environment(watch, context.device, context.dtype, context.seed),
        created_at=now,
        limitations=limitations(families, calibration),
        calibration=calibration.statement(policy.rules[RULE].alpha, families) if calibration else unknown,
        preprocessing={key: getattr(subject.preprocessing, key) for key in ("size", "mean", "std", "source")},
        prompts=prompts.record() if prompts else None,
        source=checkpoint.origin.record() if checkpoint.origin else None,
    )
    verdict, exit_code, reasons, items = judged
    return Verdict(verdict, exit_code, reasons, items, document)


def limitations(families: Sequence[str], calibration: Calibration | None) -> list[str]:
    """What a reader must not take this verdict for."""
    one_source = "" if "source_mask" in families else "needs images of one class, or "
    compared = "The false-alarm rate is that of clean models trained as the calibration's were; others may be flagged."
    borrowed = "The thresholds are the policy's; no false-alarm rate is guaranteed for them here."
    searched = [
        f"Searched for triggers of these families: {', '.join(families)}; one of another kind can be missed.",
        f"A trigger that {one_source}is larger than an ordinary adversarial pattern can be missed.",
    ]
    unsearched = ["No triggers were searched for; a backdoor that leaves the model like clean ones is missed."]
    return [
        *(searched if families else unsearched),
        compared if calibration else borrowed,
        "The trusted images were taken to be clean and correctly labelled.",
    ]


def _verdict(findings: Sequence[Finding], policy: Policy) -> str:
    return judge(findings, policy, "", datetime.datetime.now(datetime.UTC).date())[0]
