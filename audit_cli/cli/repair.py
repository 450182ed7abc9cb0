"""`audit-cli repair`: tune, audit again, and only then hand out weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from audit_cli.cli.console import colour, columns, say
from audit_cli.cli.scan import (
    AllowDownload,
    Arch,
    Device,
    Dtype,
    Labels,
    MaxMemory,
    Mean,
    Model,
    PolicyOption,
    Preprocess,
    Prompt,
    Quiet,
    Report,
    Seed,
    Size,
    Split,
    Std,
    Timeout,
    Trusted,
    Weights,
    clear,
    load_policy,
    stated_preprocessing,
    stated_prompts,
    stated_reports,
    told,
    working,
)
from audit_cli.errors import UsageError

Method = Annotated[str, typer.Option(help="ladder: escalate until a rescan passes; or one repair by its name.")]


def repair(
    model: Model,
    trusted: Trusted,
    out: Annotated[Path, typer.Option("--out", "-o", help="New folder for weights, verdict and evidence.")],
    report: Report = None,
    policy: PolicyOption = None,
    method: Method = "ladder",
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
    keep_failed: Annotated[bool, typer.Option("--keep-failed", help="Write weights even when none passed.")] = False,
    quiet: Quiet = False,
) -> int:
    """Repair MODEL with half of the trusted images, audit it again with the other half, and write the folder --out.

    The folder takes the place of the model's: same file names, tensor names and dtypes, beside verdict.json, evidence
    and a model card. A model that passes its scan is copied unchanged. When no repair passes, or it cannot be told, no
    weights are written. `repair.settings` of the policy hold for a --method, not for the ladder.

    Exit codes: 0 the repaired weights pass, 1 none did, 2 usage, 3 inconclusive, 4 error.
    """
    reports = stated_reports(report)
    inputs = [model, trusted, *([Path(policy)] if policy else []), *([labels] if labels else [])]
    clear([path for _, path in reports], None, inputs)
    if any(path.resolve().is_relative_to(out.resolve()) for _, path in reports):
        raise UsageError(f"--report: lies in {out}, which must not exist yet; name a file elsewhere")
    rules = load_policy(policy)
    from audit_cli.checkpoint.save import write_atomically
    from audit_cli.mend import repair as mend
    from audit_cli.repairs import REPAIRS, construct
    from audit_cli.repairs.ladder import LADDER, Rung
    from audit_cli.report import text

    if method not in ("ladder", *REPAIRS):
        raise UsageError(f"--method {method}: expected ladder, {', '.join(REPAIRS)}")
    chosen = construct(method if method in REPAIRS else next(iter(REPAIRS)), rules.settings)
    with working(device, dtype, seed, timeout, max_memory, quiet, rules) as context:
        verdict = mend(
            model,
            trusted,
            out,
            policy=rules,
            arch=arch,
            weights=weights,
            prompts=stated_prompts(labels, prompt),
            preprocessing=stated_preprocessing(size, mean, std, preprocess),
            auto=preprocess == "auto",
            split=split,
            ladder=LADDER if method == "ladder" else [Rung(method, chosen)],
            context=context,
            keep_failed=keep_failed,
            allow_download=allow_download,
        )
    for name, path in reports:
        write_atomically(path, told(verdict, name, out))
    if not quiet:
        sys.stderr.write(text.render(verdict, width=columns(sys.stderr), colour=colour(sys.stderr)))
    section = verdict.document.get("repair")
    delivered = isinstance(section, dict) and section["output"] is not None
    say(f"{'model and verdict' if delivered else 'verdict, and no weights,'} written to {out}", quiet=quiet)
    return verdict.exit_code
