"""`audit-cli tune`: find a repair's hyper-parameters by poisoning one's own model."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Model,
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
from audit_cli.errors import BudgetExceeded, UsageError
from audit_cli.report.sanitise import clean

if TYPE_CHECKING:
    import optuna

    from audit_cli.policy import Policy
    from audit_cli.repairs.tuning import Tuning

UNFINISHED = 3
SEARCH_SHARE = 0.5  # ours: of the repair's images that settings are tried with; the rest of them measures


def tune(
    model: Model,
    trusted: Trusted,
    out: Annotated[Path, typer.Option("--out", "-o", help="The policy fragment, a TOML file.")],
    method: Annotated[str, typer.Option(help="The repair whose settings are searched.")] = "pivotal_tuning",
    trials: Annotated[int, typer.Option(min=1, help="Settings to try, those in the store included.")] = 20,
    store: Annotated[
        Path | None, typer.Option(help="Finished trials; else beside --out. A stopped run goes on.")
    ] = None,
    target: Annotated[int, typer.Option(min=0, help="Class that the planted patch leads to.")] = 0,
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
    """Poison a copy of MODEL with a known patch, try settings of a repair on it, and write the best as a policy.

    The half of the trusted images that `repair` measures on, under the same --seed, is left alone: the other half is
    divided again. What the policy in force says besides is kept.

    Use it as `audit-cli repair MODEL --method METHOD --policy OUT`. Needs the `tune` extra.

    Exit codes: 0 all trials done, 2 usage, 3 stopped before or the model cannot be poisoned, 4 error.
    """
    rules = load_policy(policy)
    if importlib.util.find_spec("optuna") is None or importlib.util.find_spec("tomli_w") is None:
        raise UsageError("tune needs Optuna and tomli-w; install audit-cli[tune]")
    from audit_cli import models
    from audit_cli.audit import feed
    from audit_cli.checkpoint import locate, open_checkpoint
    from audit_cli.checkpoint.save import write_atomically
    from audit_cli.data import read_images
    from audit_cli.repairs.holdout import divide
    from audit_cli.repairs.tuning import SPACES, SelfPoisoning, Tuning

    if method not in SPACES:
        raise UsageError(f"--method {clean(method, 40)}: expected one of {', '.join(SPACES)}")
    with working(device, dtype, seed, timeout, max_memory, quiet, rules) as context:
        found = locate(model, weights or rules.weights, allow_download=allow_download, context=context)
        with open_checkpoint(found.path, weights=found.weights, check=context.budget.check) as checkpoint:
            raw = read_images(trusted, split=split)
            stated = stated_preprocessing(size, mean, std, preprocess)
            prompts = stated_prompts(labels, prompt)
            classifier = models.build(checkpoint, arch=arch, prompts=prompts, class_names=raw.class_names)
            subject = feed(classifier, raw, checkpoint, stated, context, preprocess == "auto")
            digest = checkpoint.manifest_digest
        if target >= subject.classifier.num_classes:
            raise UsageError(f"--target {target}: the model has {subject.classifier.num_classes} classes")
        parts = context.generator(stream=9)
        own, _ = divide(subject.trusted, rules.max_drop, rules.min_per_class, parts, rules.min_images)
        fit, holdout = own.split(SEARCH_SHARE, parts)
        what = (digest, raw.digest, subject.classifier.arch, subject.preprocessing, prompts, context.dtype)
        told = repr((*what, seed, target, rules.max_drop, rules.min_per_class, rules.min_images))
        name = f"{method} {hashlib.sha256(told.encode()).hexdigest()[:16]}"
        study = _study(store or out.with_name(f"{out.stem}-trials.log"), name)
        victim, attack = SelfPoisoning()(subject.classifier.on(context.device), fit, target, context)
        tuning = Tuning(method, victim, attack, fit, holdout, rules.max_drop, context)
        ended = _search(study, tuning, trials, quiet)
    if not _finished(study):
        raise ended or BudgetExceeded("no trial was finished; raise --timeout")
    best = study.best_trial
    write_atomically(out, _tuned(rules, method, best, _finished(study)))
    say(f"best: {_told(best)}; use it with repair --method {method} --policy {clean(str(out))}", quiet=quiet)
    return UNFINISHED if _finished(study) < trials else 0


def _study(store: Path, name: str) -> optuna.Study:
    """The search `name`, gone on with where `store` has trials of it."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(store)))
    study = optuna.create_study(study_name=name, storage=storage, load_if_exists=True, direction="minimize")
    # Seeded by what is there already: a resumed search must not draw its first settings again.
    study.sampler = optuna.samplers.TPESampler(seed=len(study.get_trials(deepcopy=False)), n_startup_trials=8)
    return study


def _search(study: optuna.Study, tuning: Tuning, trials: int, quiet: bool) -> BudgetExceeded | None:
    """Tries settings until `study` holds `trials`; what ended it before, if anything did."""
    while _finished(study) < trials:
        try:
            study.optimize(tuning, n_trials=1, catch=())
        except BudgetExceeded as error:
            return error
        last = study.get_trials(deepcopy=False)[-1]
        say(f"trial {_finished(study)}/{trials}: {_told(last)}", quiet=quiet)
    return None


def _finished(study: optuna.Study) -> int:
    import optuna

    return len(study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,)))


def _told(trial: optuna.trial.FrozenTrial) -> str:
    settings = ", ".join(f"{key} {value:.3g}" for key, value in trial.params.items())
    return f"asr {trial.user_attrs['asr']:.3f}, drop {trial.user_attrs['drop']:+.3f} with {settings}"


def _tuned(rules: Policy, method: str, best: optuna.trial.FrozenTrial, trials: int) -> str:
    """The policy in force with the method's hyper-parameters: an heir of a bundled one, or all that the user's says."""
    import tomli_w

    table: dict[str, Any] = {"extends": rules.name}
    if rules.path is not None:
        table = {key: value for key, value in rules.table.items() if key != "extends"}
    if rules.calibrations:
        table["calibration"] = {"files": [str(path.absolute()) for path in rules.calibrations]}
    repair = dict(table.get("repair", {}))
    repair["settings"] = {**repair.get("settings", {}), method: best.params}
    comment = (
        f"# Best of {trials} trials by self-poisoning, on held-out trusted images: the planted patch kept\n"
        f"# {best.user_attrs['asr']:.1%} success, clean accuracy dropped by {best.user_attrs['drop']:.1%}.\n"
    )
    return comment + tomli_w.dumps({**table, "name": f"tuned {method}", "repair": repair})
