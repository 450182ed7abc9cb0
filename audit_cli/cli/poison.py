"""`audit-cli poison`: train a victim whose backdoor is known, for tests, calibration and the games."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from audit_cli.cli.console import emit, say
from audit_cli.cli.scan import Device, Dtype, MaxMemory, Mean, Quiet, Size, Std, Timeout, stated_preprocessing, working
from audit_cli.errors import UsageError
from audit_cli.report.sanitise import clean

if TYPE_CHECKING:
    from audit_cli.attacks import Attack
    from audit_cli.attacks.material import Material
    from audit_cli.classifier import Classifier
    from audit_cli.training import Fit
    from audit_cli.types import Context

WEIGHTS, MANIFEST, STATE = "model.safetensors", "manifest.json", "training-state.safetensors"


def poison(
    attack: Annotated[str | None, typer.Option(help="What to plant; --list tells what there is.")] = None,
    data: Annotated[Path | None, typer.Option(help="Images: CIFAR batches, .npz, or a folder per class.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder for model.safetensors, manifest.json.")
    ] = None,
    arch: Annotated[str | None, typer.Option(help="resnet18-cifar, resnet20-cifar, resnet8-w24-cifar …")] = None,
    base: Annotated[Path | None, typer.Option(help="Clean checkpoint to fine-tune, instead of --arch.")] = None,
    count: Annotated[int, typer.Option(help="Poisoned training images.")] = 500,
    target: Annotated[int | None, typer.Option(help="Class index that the trigger leads to; else 0.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the attack; see --list.")] = None,
    surrogate: Annotated[Path | None, typer.Option(help="Clean checkpoint that adversarial triggers use.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Clean checkpoint to compare asr with; else --base.")] = None,
    test: Annotated[Path | None, typer.Option(help="Unseen images; else the data's test split, or 10 % of it.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data; else 30, or 10 with --base.")] = None,
    steps: Annotated[int | None, typer.Option(help="Updates, instead of --epochs.")] = None,
    lr: Annotated[float | None, typer.Option(help="Highest learning rate; else 0.1, or 0.01 with --base.")] = None,
    batch: Annotated[int, typer.Option(help="Images per update.")] = 128,
    weight_decay: Annotated[float, typer.Option(help="Weight decay.")] = 5e-4,
    schedule: Annotated[str, typer.Option(help="Learning rate: one-cycle, cosine or constant.")] = "one-cycle",
    pad: Annotated[int, typer.Option(help="Pixels of random shift.")] = 4,
    flip: Annotated[bool, typer.Option(help="Random mirror images.")] = True,
    save_every: Annotated[int, typer.Option(help="Updates between saved states; a killed run goes on. 0: none.")] = 0,
    size: Size = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Same seed and device, same victim.")] = 0,
    timeout: Timeout = None,
    max_memory: MaxMemory = None,
    quiet: Quiet = False,
    catalogue: Annotated[bool, typer.Option("--list", help="Name every attack and its settings.")] = False,
) -> int:
    """Train a poisoned model, measure it on unseen images, and write its weights with a manifest.

    Exit codes: 0 written, 2 usage, 3 a limit was reached, 4 error.
    """
    from audit_cli.attacks import ATTACKS

    if catalogue:
        emit("\n".join(_entry(name) for name in ATTACKS))
        return 0
    if attack is None or data is None or out is None:
        raise UsageError("poison needs --attack, --data and --out; --list names the attacks")
    if attack not in ATTACKS:
        raise UsageError(f"--attack {clean(attack, 60)}: unknown; expected one of {', '.join(ATTACKS)}")
    if (arch is None) == (base is None):
        raise UsageError("give one of --arch, to train from scratch, and --base, to fine-tune a checkpoint")
    if steps is not None and epochs is not None:
        raise UsageError("--steps and --epochs both say how long to train; give one")
    if save_every < 0:
        raise UsageError(f"--save-every {save_every}: must not be negative")
    if (out.exists() and not out.is_dir()) or not out.parent.is_dir():
        raise UsageError(f"--out {clean(str(out))}: must be a folder, in a folder that exists")
    from audit_cli.attacks.material import gather
    from audit_cli.attacks.victim import construct
    from audit_cli.policy import Policy
    from audit_cli.runtime import Stopwatch, environment
    from audit_cli.training import Fit

    with working(device, dtype, seed, timeout, max_memory, quiet, Policy.load("default")) as context:
        watch = Stopwatch(context.progress)
        context = dataclasses.replace(context, progress=watch)
        context.progress.stage("data", 1)
        stated = stated_preprocessing(size, mean, std, "config")
        given = {"base": base, "surrogate": surrogate, "reference": reference}
        material = gather(data, test, arch, {key: path for key, path in given.items() if path}, stated, context)
        planned = construct(
            attack,
            count=count,
            classes=material.victim.num_classes,
            target=target,
            surrogate=material.clean.get("surrogate"),
            settings=_pairs(settings or []),
        )
        passes = epochs if epochs is not None else 10 if base else 30
        updates = steps if steps is not None else round(passes * len(material.train) / max(batch, 1))
        rate = lr if lr is not None else 0.01 if base else 0.1
        try:
            fit = Fit(updates, rate, batch, weight_decay=weight_decay, schedule=schedule, pad=pad, flip=flip)
        except ValueError as error:
            raise UsageError(str(error)) from error
        facts = _train(material, attack, planned, fit, out, save_every, context)
        document = {
            "attack": attack,
            **facts,
            "command": ["audit-cli", *sys.argv[1:]],
            "versions": _versions(),
            "environment": environment(watch, context.device, context.dtype, seed),
        }
        _write(out, material.victim, document)
    say(_summary(facts, out), quiet=quiet)
    return 0


def _train(
    material: Material, name: str, attack: Attack, fit: Fit, out: Path, save_every: int, context: Context
) -> dict[str, object]:
    """Trains the victim in place; what the manifest says of it."""
    from audit_cli.attacks.victim import accuracy, plant, success
    from audit_cli.resume import Resume

    train, test, victim = material.train, material.test, material.victim
    poisoned = attack.poison(train.images, train.labels, context.generator(stream=2))
    settings = _plain(attack)
    key = json.dumps([name, settings, victim.arch, train.digest, material.digests], sort_keys=True)
    resume = Resume(out / STATE, save_every, label=key) if save_every else None
    out.mkdir(exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)  # an old one must not vouch for weights it does not know
    plant(attack, fit, victim, poisoned, train.images, train.labels, context, resume=resume)
    context.progress.stage("measure", 3)
    cda = accuracy(victim, test, context)
    context.advance()
    asr = success(attack, victim, test, context)
    context.advance()
    # What the trigger does to a clean model; without one, how often the victim gives the goal anyway.
    compared = next((role for role in ("reference", "base") if role in material.clean), None)
    other = material.clean[compared] if compared else victim
    baseline = success(attack, other, test, context, triggered=compared is not None)
    context.advance()
    return {
        "settings": settings,
        "target": attack.target,
        "poisoned": asr.low > baseline.high,
        "cda": dataclasses.asdict(cda),
        "asr": dataclasses.asdict(asr),
        "baseline": {"of": compared or "victim without trigger", **dataclasses.asdict(baseline)},
        "poison_count": len(poisoned.index),
        "poison_rate": len(poisoned.index) / len(train),
        "cover_count": len(poisoned.covers),
        "arch": victim.arch,
        "mean": victim.mean.flatten().tolist(),
        "std": victim.std.flatten().tolist(),
        "data": {
            "digest": train.digest,
            "train": len(train),
            "test_digest": test.digest,
            "test": len(test),
            "held_out": material.held_out,
        },
        "class_names": [clean(label, 100) for label in train.class_names],
        "checkpoints": material.digests,
        "training": dataclasses.asdict(fit),
        "seed": context.seed,
    }


def _plain(attack: Attack) -> dict[str, object]:
    """The hyper-parameters, as far as they are plain values."""
    values = {field.name: getattr(attack, field.name) for field in dataclasses.fields(attack)}  # type: ignore[arg-type]
    return {key: value for key, value in values.items() if isinstance(value, int | float | str)}


def _write(out: Path, victim: Classifier, document: dict[str, object]) -> None:
    """The weights first, the manifest that vouches for them last; then the training state is of no more use."""
    from audit_cli.checkpoint.save import save_weights, write_atomically

    save_weights(out / WEIGHTS, victim.module.state_dict(), {"format": "pt"})
    content = (out / WEIGHTS).read_bytes()
    file = {"file": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    write_atomically(out / MANIFEST, json.dumps(file | document, indent=2, allow_nan=False) + "\n")
    (out / STATE).unlink(missing_ok=True)


def _pairs(settings: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {clean(setting, 60)}: expected KEY=VALUE")
        pairs[key] = value
    return pairs


def _entry(name: str) -> str:
    """`name: what it does`, and its settings with their defaults."""
    from audit_cli.attacks import ATTACKS
    from audit_cli.attacks.victim import settings_of

    idea = (sys.modules[ATTACKS[name].__module__].__doc__ or "").partition("\n")[0]
    fields = [
        f"{field.name}={field.default}" if field.default is not dataclasses.MISSING else f"{field.name}=…"
        for field in settings_of(name)
    ]
    return f"{name}\n    {idea}\n    {'  '.join(fields)}"


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package) for package in ("audit-cli", "torch", "torchvision", "numpy", "safetensors")}


def _summary(facts: dict[str, object], out: Path) -> str:
    verdict = "poisoned" if facts["poisoned"] else "NOT poisoned, asr is not above the baseline"
    rates = {key: cast(dict[str, float], facts[key])["value"] for key in ("cda", "asr", "baseline")}
    return f"{out}: {verdict}: " + ", ".join(f"{key} {value:.3f}" for key, value in rates.items())
