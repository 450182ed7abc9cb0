"""`audit-cli scan`: the main job."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audit_cli.cli.console import colour, columns, emit, make_progress, say
from audit_cli.errors import UsageError

if TYPE_CHECKING:
    from audit_cli.data import Preprocessing
    from audit_cli.models import Prompts
    from audit_cli.policy import Policy
    from audit_cli.types import Context, Verdict

FAILED = 1

# Options that scan shares with every command that runs a model.
Model = Annotated[
    Path, typer.Argument(help="A .safetensors file, a Hugging Face model folder, or hf:org/name@revision.")
]
Report = Annotated[list[str] | None, typer.Option(help="FORMAT=FILE: html, markdown, sarif, junit or text.")]
Trusted = Annotated[
    Path, typer.Option("--trusted", "-t", help="Clean labelled images: ImageFolder, .npz, parquet, CIFAR batches.")
]
PolicyOption = Annotated[str | None, typer.Option("--policy", help="default, strict, thresholds, or a TOML file.")]
Arch = Annotated[
    str | None, typer.Option(help="torchvision:NAME, timm:NAME, package.module:factory or file.py:factory.")
]
Weights = Annotated[str | None, typer.Option(help="The file to audit, where a folder has several formats.")]
AllowDownload = Annotated[bool, typer.Option("--allow-download", help="Let hf:org/name be fetched from the hub.")]
Labels = Annotated[
    Path | None, typer.Option(help="CLIP: a text file of labels, one a line; else the trusted data's class names.")
]
Prompt = Annotated[
    list[str] | None, typer.Option(help='CLIP: a template such as "a photo of a {}."; several are averaged.')
]
Size = Annotated[str | None, typer.Option(help="Input size, as 224 or 224x224; images are resized to it.")]
Mean = Annotated[str | None, typer.Option(help="Normalisation mean for [0, 1] pixels, as 0.485,0.456,0.406.")]
Std = Annotated[str | None, typer.Option(help="Normalisation standard deviation, as 0.229,0.224,0.225.")]
Preprocess = Annotated[str, typer.Option(help="config: as the checkpoint says, else auto; auto: try the usual ones.")]
Split = Annotated[str, typer.Option(help="Part of an archive that has several: test or train.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[str, typer.Option(help="Of forward passes: auto, float32 or bfloat16.")]
Seed = Annotated[int, typer.Option(min=0, help="Same seed and device, same verdict.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds, then INCONCLUSIVE.")]
MaxMemory = Annotated[str | None, typer.Option(help="Memory as 2GiB or 2000MB, then INCONCLUSIVE.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")]


def scan(
    model: Model,
    trusted: Trusted,
    policy: PolicyOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the JSON verdict goes; else stdout.")] = None,
    report: Report = None,
    evidence: Annotated[Path | None, typer.Option(help="Folder for pictures; else beside --out.")] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            help="calibrated, for a CLIP without labels encoder; quick: without a search, beside clean models that "
            "were scored; published: the paper's own; sizes, neural_cleanse, margin, weights, ban."
        ),
    ] = None,
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
    exit_zero: Annotated[bool, typer.Option("--exit-zero", help="Return 0 instead of 1 on FAIL.")] = False,
    quiet: Quiet = False,
) -> int:
    """Hunt for a planted backdoor in MODEL with trusted images and write a verdict.

    Without --out the JSON verdict goes to stdout, or, when stdout is a terminal, a readable summary instead.

    Exit codes: 0 pass, 1 fail, 2 usage, 3 inconclusive, 4 error.
    """
    reports = stated_reports(report)
    pictures = evidence or (out.with_name(f"{out.stem}-evidence") if out else None)
    inputs = [model, trusted, *([Path(policy)] if policy else []), *([labels] if labels else [])]
    clear([*([out] if out else []), *[path for _, path in reports]], pictures, inputs)
    rules = load_policy(policy)
    from audit_cli.audit import scan as audit
    from audit_cli.detectors import DETECTORS

    if detector is not None and detector not in DETECTORS:
        raise UsageError(f"--detector {detector}: expected one of {', '.join(DETECTORS)}")
    with working(device, dtype, seed, timeout, max_memory, quiet, rules) as context:
        verdict = audit(
            model,
            trusted,
            policy=rules,
            arch=arch,
            weights=weights,
            prompts=stated_prompts(labels, prompt),
            preprocessing=stated_preprocessing(size, mean, std, preprocess),
            auto=preprocess == "auto",
            split=split,
            detectors=[] if detector is None else [DETECTORS[detector]()],
            context=context,
            evidence=pictures,
            allow_download=allow_download,
        )
    publish(verdict, out, reports, quiet)
    return 0 if exit_zero and verdict.exit_code == FAILED else verdict.exit_code


def load_policy(source: str | None) -> Policy:
    """The named policy; else the current directory's pyproject.toml, else the default one."""
    from audit_cli.policy import Policy

    return Policy.load(source) if source else Policy.find()


@contextmanager
def working(
    device: str, dtype: str, seed: int, timeout: float | None, max_memory: str | None, quiet: bool, policy: Policy
) -> Iterator[Context]:
    """A context for long work: deterministic, within its budget, reporting on stderr."""
    import torch

    from audit_cli.runtime import Allowance, choose_device, choose_dtype
    from audit_cli.types import Context

    place = choose_device(device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory = parse_bytes(max_memory) if max_memory else policy.max_memory
    allowance = Allowance(timeout if timeout is not None else policy.timeout, memory)
    with make_progress(quiet) as progress, allowance.enforced():
        yield Context(seed, place, choose_dtype(dtype, place), progress, allowance)


def told(verdict: Verdict, name: str, base: Path) -> str:
    """The verdict in the format `name`, with pictures from below `base` where it shows any."""
    from audit_cli.report import RENDERERS, html

    return html.render(verdict, base) if name == "html" else RENDERERS[name](verdict)


def publish(verdict: Verdict, out: Path | None, reports: Sequence[tuple[str, Path]], quiet: bool) -> None:
    """The verdict to `out` or stdout, the reports to their files, a summary to the person.

    Everything is rendered before anything is written, and what was written goes again when a later file cannot be:
    a run that ends in an error leaves no verdict behind.
    """
    from audit_cli.checkpoint.save import write_atomically
    from audit_cli.report import json, text

    rendered = json.render(verdict)
    files = [(path, told(verdict, name, out.parent if out else path.parent)) for name, path in reports]
    if out:
        files.append((out, rendered))
    stream = sys.stderr if out or not sys.stdout.isatty() else sys.stdout
    summary = text.render(verdict, width=columns(stream), colour=colour(stream))
    try:
        for path, content in files:
            write_atomically(path, content)
        if not out and stream is sys.stderr:
            emit(rendered)
        if not quiet or stream is sys.stdout:
            stream.write(summary)
        if out:
            say(f"verdict written to {out}", quiet=quiet)
        sys.stdout.flush()
    except BaseException:
        for path, _ in files:
            path.unlink(missing_ok=True)
        raise


def stated_preprocessing(size: str | None, mean: str | None, std: str | None, preprocess: str) -> Preprocessing | None:
    """What the user said about the model's input; None when nothing."""
    from audit_cli.data import Preprocessing

    if preprocess not in ("config", "auto"):
        raise UsageError(f"--preprocess {preprocess}: expected config or auto")
    if (mean is None) != (std is None):
        raise UsageError("--mean and --std come together; give both")
    if preprocess == "auto" and mean is not None:
        raise UsageError("--preprocess auto tries normalisations, --mean and --std state one; give one of the two")
    height, width = _size(size) if size else (0, 0)
    geometry = Preprocessing.for_size((height, width), "command line") if size else Preprocessing()
    if mean is None or std is None:
        return geometry if size else None
    from dataclasses import replace

    return replace(geometry, mean=_channels(mean, "--mean"), std=_channels(std, "--std"), source="command line")


def stated_prompts(labels: Path | None, prompt: Sequence[str] | None) -> Prompts | None:
    """What the user said of a CLIP model's classes; None when nothing."""
    from audit_cli.models import Prompts

    return Prompts.read(labels, prompt or ()) if labels or prompt else None


def parse_bytes(text: str) -> int:
    """`2GiB`, `2000MB`, `2G` (of 1024) or a number of bytes."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "K": 2**10, "M": 2**20, "G": 2**30}
    units |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1}
    number = text.rstrip("KMGiBbkmg ")
    unit = text[len(number) :].strip().upper()
    try:
        return int(float(number) * units[unit])
    except (KeyError, ValueError, OverflowError) as error:
        raise UsageError(f"--max-memory {text}: expected a size such as 2GiB or 2000MB") from error


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    try:
        sides = [int(part) for part in parts]
    except ValueError as error:
        raise UsageError(f"--size {text}: expected 224 or 224x224") from error
    if len(sides) not in (1, 2):
        raise UsageError(f"--size {text}: expected 224 or 224x224")
    return sides[0], sides[-1]


def _channels(text: str, option: str) -> tuple[float, float, float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"{option} {text}: expected one number or three, separated by commas") from error
    if len(values) == 1:
        values *= 3
    if len(values) != 3:
        raise UsageError(f"{option} {text}: expected one number or three, separated by commas")
    return values[0], values[1], values[2]


def stated_reports(options: Sequence[str] | None) -> list[tuple[str, Path]]:
    """FORMAT=FILE options, checked before any work."""
    from audit_cli.report import RENDERERS

    reports = []
    for option in options or []:
        name, equals, path = option.partition("=")
        if not equals or not path or name not in RENDERERS:
            raise UsageError(f"--report {option}: expected FORMAT=FILE with FORMAT one of {', '.join(RENDERERS)}")
        reports.append((name, Path(path)))
    return reports


def clear(outputs: Sequence[Path], pictures: Path | None, inputs: Sequence[Path]) -> None:
    """Old results go first, so that none can be taken for this run's; an impossible place is told before any work."""
    for number, path in enumerate(outputs):
        if not path.parent.is_dir():
            raise UsageError(f"{path}: its folder does not exist; make it first")
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name a file")
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise UsageError(f"{path}: is a link or a device; name a file, or leave --out away to write to stdout")
        if path.exists() and any(path.resolve().is_relative_to(source.resolve()) for source in inputs):
            raise UsageError(f"{path}: belongs to an input and would be overwritten; name another file")
        if path.resolve() in [other.resolve() for other in outputs[:number]]:
            raise UsageError(f"{path}: is named for two outputs; name two files")
    if pictures and pictures.exists() and not pictures.is_dir():
        raise UsageError(f"{pictures}: is not a folder; pass another --evidence")
    for path in outputs:
        path.unlink(missing_ok=True)
    for old in pictures.glob("*-class-*.png") if pictures else []:
        old.unlink()
