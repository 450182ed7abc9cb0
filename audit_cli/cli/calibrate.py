"""`audit-cli calibrate`: measure what scores clean models get, so that a verdict can say how rare a score is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audit_cli.cli.console import say
from audit_cli.cli.scan import (
    AllowDownload,
    Arch,
    Device,
    Dtype,
    Labels,
    MaxMemory,
    Mean,
    PolicyOption,
    Preprocess,
    Prompt,
    Quiet,
    Seed,
    Size,
    Split,
    Std,
    Timeout,
    Trusted,
    Weights,
    load_policy,
    stated_preprocessing,
    stated_prompts,
    working,
)
from audit_cli.errors import UnsupportedError, UsageError
from audit_cli.report.sanitise import clean

if TYPE_CHECKING:
    from audit_cli.audit import Subject
    from audit_cli.calibration import Calibration, Clean
    from audit_cli.checkpoint import Checkpoint
    from audit_cli.data import RawImages
    from audit_cli.detectors.calibrated import Calibrated
    from audit_cli.policy import Policy
    from audit_cli.types import Context

FEW = 19  # with fewer clean models no p-value comes down to 5 %


def calibrate(
    models: Annotated[list[Path], typer.Argument(help="Checkpoints known to be clean, all of one kind, as for scan.")],
    trusted: Trusted,
    out: Annotated[Path, typer.Option("--out", "-o", help="The calibration file; models already in it are kept.")],
    name: Annotated[str, typer.Option(help="What the calibration is called.")] = "own models",
    quick: Annotated[
        bool, typer.Option("--quick", help="Search no triggers: seconds a model; scans judge them by thresholds.")
    ] = False,
    policy: PolicyOption = None,
    arch: Arch = None,
    weights: Weights = None,
    allow_download: AllowDownload = False,
    labels: Labels = None,
    prompt: Prompt = None,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    preprocess: Preprocess = "config",
    split: Split = "test",
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Seed = 0,
    timeout: Timeout = None,
    max_memory: MaxMemory = None,
    quiet: Quiet = False,
) -> int:
    """Score clean MODELS as `scan` would and write the calibration that gives later scores their p-value.

    The file is written anew after each model: a stopped run goes on where it was. With --quick only what one pass over
    the images tells is scored and later compared, which finds nearly as much.

    Exit codes: 0 done, 2 usage, 3 a model cannot be scored, 4 error.
    """
    rules = load_policy(policy)
    from audit_cli.audit import feed
    from audit_cli.calibration import read
    from audit_cli.checkpoint import locate, open_checkpoint
    from audit_cli.checkpoint.save import write_atomically
    from audit_cli.data import read_images
    from audit_cli.models import build

    detector, marks = _scoring(quick)
    stated, auto = stated_preprocessing(size, mean, std, preprocess), preprocess == "auto"
    weights, prompts = weights or rules.weights, stated_prompts(labels, prompt)
    with working(device, dtype, seed, timeout, max_memory, quiet, rules) as context:
        raw = read_images(trusted, split=split)
        calibration = read(out) if out.exists() else None
        for model in models:
            found = locate(model, weights, allow_download=allow_download, context=context)
            with open_checkpoint(found.path, weights=found.weights, check=context.budget.check) as checkpoint:
                if calibration and any(entry.digest == checkpoint.manifest_digest for entry in calibration.models):
                    say(f"{clean(str(model))}: is in {clean(str(out))} already", quiet=quiet)
                    continue
                classifier = build(checkpoint, arch=arch, prompts=prompts, class_names=raw.class_names)
                subject = feed(classifier, raw, checkpoint, stated, context, auto)
                if quick and not detector.race.whole(classifier.num_classes):
                    raise UsageError(
                        f"--quick: which of {classifier.num_classes} classes are scored depends on the search; "
                        "calibrate without it"
                    )
                entry = _score(checkpoint, subject, rules, detector, context)
            if calibration and any(replace(entry, digest=other.digest) == other for other in calibration.models):
                say(f"{clean(str(model))}: measures as a model that is in already; no second one", quiet=quiet)
                continue
            calibration = _with(calibration, name, subject, entry, raw, marks, out)
            write_atomically(out, json.dumps(calibration.document(), indent=1) + "\n")
            highest = max(score for row in entry.scores.values() for score in row if score is not None)
            say(f"{clean(str(model))}: highest score {highest:.3f}", quiet=quiet)
    if calibration is not None and len(calibration.models) < FEW:
        few, lowest = len(calibration.models), 1 / (len(calibration.models) + 1)
        counted = "1 model" if few == 1 else f"{few} models"
        say(f"{counted}: no p-value can be under {lowest:.3f}; {FEW} allow 0.05", quiet=quiet)
    return 0


def _scoring(quick: bool) -> tuple[Calibrated, Mapping[str, str]]:
    """The detector that scores clean models, and by family what its scores depend on; if quick, without searches."""
    from audit_cli.calibration import fingerprints
    from audit_cli.detectors.calibrated import Calibrated

    detector = Calibrated().measured if quick else Calibrated().compared
    return detector, fingerprints(detector)


def _score(checkpoint: Checkpoint, subject: Subject, policy: Policy, detector: Calibrated, context: Context) -> Clean:
    """The entry of one clean model. Raises UnsupportedError when it fails the sanity checks."""
    from audit_cli.audit import measure
    from audit_cli.calibration import Domain, clean_model
    from audit_cli.detectors.profile import Profile
    from audit_cli.judgement import judge
    from audit_cli.metrics import overconfidence, predict
    from audit_cli.repairs.attempt import today

    findings = measure(subject, policy, [detector], context)
    # What decides beside clean models alone cannot yet: this is one of them.
    alone = [finding for finding in findings if not finding.details.get("only_compared")]
    verdict, _, reasons, _ = judge(alone, policy, checkpoint.manifest_digest, today())
    if verdict == "INCONCLUSIVE":
        raise UnsupportedError(f"{clean(str(checkpoint.source))}: cannot be scored: {reasons[0]}")
    accuracy = next((f.details.get("accuracy") for f in findings if f.rule_id == "BD101"), None)
    domain = Domain.of(subject.classifier, subject.trusted)
    moved = Profile().moved(subject.classifier, subject.trusted, context)
    sure = overconfidence(predict(subject.classifier, subject.trusted.images, context), subject.trusted.labels)
    digest = checkpoint.manifest_digest
    return clean_model(digest, subject.classifier, float(accuracy or 0.0), findings, domain, moved, sure)


def _with(
    calibration: Calibration | None,
    name: str,
    subject: Subject,
    entry: Clean,
    raw: RawImages,
    marks: Mapping[str, str],
    out: Path,
) -> Calibration:
    """The calibration with one more model. Raises UsageError when it is of another kind."""
    from audit_cli.calibration import Calibration, Domain

    domain = Domain.of(subject.classifier, subject.trusted)
    if calibration is None:
        return Calibration(name, domain, marks, raw.digest, len(raw), (entry,))
    here = (calibration.domain, calibration.scoring, calibration.trusted)
    if here != (domain, marks, raw.digest):
        raise UsageError(
            f"{clean(str(out))}: holds models of another kind, other trusted images or detector settings, as with or "
            f"without --quick ({calibration.domain}; this model: {domain}); give another --out"
        )
    return replace(calibration, models=(*calibration.models, entry))
