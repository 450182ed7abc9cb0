"""The robustness game: does a backdoor survive a repair?

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671 (Algorithm 1). Train on n clean and m poisoned samples, repair with r trusted images,
and measure (cda, asr) with the true trigger on unseen images, all along the repair, so that the whole trade-off can be
drawn until the accuracy has dropped by Δ.

A cell is one (victim, repair). Nothing is chosen with the measured images: the result of a repair is its last step.

Differs from the paper: the trusted images are unseen ones, the victim was not trained on them; the paper draws them
from the training split and reports the best step on the test split.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from audit_cli.attacks.victim import Rate, success
from audit_cli.checkpoint import open_checkpoint
from audit_cli.classifier import Classifier
from audit_cli.data import Preprocessing
from audit_cli.games.cells import Cell, Facts
from audit_cli.games.config import LADDER
from audit_cli.games.recipes import Recipe
from audit_cli.games.zoo import Victim, Zoo
from audit_cli.metrics import cda, cda_drop, evaluating, predict
from audit_cli.models import build
from audit_cli.repairs import construct
from audit_cli.types import Context, TrustedData

Settings = Mapping[str, Mapping[str, float]]  # repair -> hyper-parameters other than its defaults
CURVE_IMAGES = 500  # measured images that a point of the curve is taken on
CURVE_POINTS = 20  # about so many


def robustness(zoo: Zoo, recipes: Sequence[Recipe], repairs: Sequence[str], settings: Settings) -> list[Cell]:
    """A cell for every victim and repair, victim by victim."""
    return [_cell(zoo, recipe, repair, settings) for recipe in recipes for repair in repairs]


def _cell(zoo: Zoo, recipe: Recipe, repair: str, settings: Settings) -> Cell:
    return Cell(f"{recipe.name}.{repair}", lambda: repaired(zoo, recipe, repair, settings))


def repaired(zoo: Zoo, recipe: Recipe, repair: str, settings: Settings) -> Facts:
    """One victim before and after one repair, whose hyper-parameters may be set."""
    victim = zoo.victim(recipe)
    context, trusted = replace(zoo.context, seed=recipe.seed), zoo.data.trusted_of(recipe.seed)
    curve = Curve(victim, zoo.data.measured.take(torch.arange(min(CURVE_IMAGES, len(zoo.data.measured)))), context)
    began, cpu = time.monotonic(), time.process_time()
    if repair == LADDER:
        after, told = by_ladder(victim, trusted, context)
    else:
        after, told = construct(repair, settings)(victim.classifier.frozen(), trusted, context, curve), {}
    took, worked = time.monotonic() - began, time.process_time() - cpu
    return victim.facts() | {
        "game": "robustness",
        "repair": repair,
        "settings": dict(settings.get(repair, {})),
        "trusted": len(trusted),
        **told,
        **outcome(victim, after, zoo.data.measured, context),
        "curve": curve.points,
        "seconds": round(took, 2),
        "cpu_seconds": round(worked, 2),
    }


def outcome(victim: Victim, after: Classifier, measured: TrustedData, context: Context) -> Facts:
    """cda and asr after a repair, and the paired drop of cda, with 95 % intervals."""
    images, labels = measured.images, measured.labels
    outputs = predict(after, images, context)
    drop = cda_drop(predict(victim.classifier, images, context), outputs, labels)
    residual = success(victim.attack, after, measured, context) if victim.attack else None
    return {
        "cda_after": asdict(Rate.of(cda(outputs, labels), len(labels))),
        "cda_drop": dict(zip(("value", "low", "high"), drop, strict=True)),
        "asr_after": asdict(residual) if residual else None,
    }


def by_ladder(victim: Victim, trusted: TrustedData, context: Context) -> tuple[Classifier, Facts]:
    """What `audit-cli repair` makes of the victim's file; the pivot itself where it writes nothing."""
    from audit_cli.mend import repair  # it knows games' parts, and games only here know it

    network = victim.recipe.network
    stated = Preprocessing(mean=network.mean, std=network.std, source="bench")
    with tempfile.TemporaryDirectory(prefix="audit-cli-") as folder:
        archive, out = Path(folder) / "trusted.npz", Path(folder) / "out"
        pixels = (trusted.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        np.savez(archive, images=pixels, labels=trusted.labels.numpy(), classes=np.array(trusted.class_names))
        verdict = repair(victim.path, archive, out, preprocessing=stated, context=context, keep_failed=True)
        written = out / victim.path.name
        with open_checkpoint(written if written.exists() else victim.path) as checkpoint:
            after = build(checkpoint, mean=network.mean, std=network.std).on(context.device).frozen()
    told = verdict.document.get("repair")
    told = told if isinstance(told, dict) else {}
    facts = {"verdict": verdict.verdict, "rung": told.get("method"), "reasons": list(verdict.reasons)}
    return after, facts | {key: told.get(key, []) for key in ("convicted", "attempts")}


@dataclass
class Curve:
    """A Watch that measures cda and the true trigger's success about twenty times along a repair."""

    victim: Victim
    data: TrustedData
    context: Context
    points: list[Facts] = field(default_factory=list)
    every: int = 25

    def __call__(self, step: int, classifier: Classifier) -> None:
        if step % self.every:
            return
        with evaluating(classifier):
            asr = success(self.victim.attack, classifier, self.data, self.context).value if self.victim.attack else None
            accuracy = cda(predict(classifier, self.data.images, self.context), self.data.labels)
        self.points.append({"step": step, "cda": round(accuracy, 4), "asr": asr if asr is None else round(asr, 4)})
        if len(self.points) == 2 * CURVE_POINTS:  # a long repair: thin the curve out, keep its first point
            self.points[:] = self.points[::2]
            self.every *= 2
