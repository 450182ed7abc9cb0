"""Victims and the clean networks they start from, each trained once and kept under the digest of its recipe.

Asking the zoo for a recipe trains it, goes on with a training that was stopped, or reads what is there; a second
process that wants the same model waits for the first.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from audit_cli.attacks import Attack
from audit_cli.attacks.poisoning import Poisoned
from audit_cli.attacks.victim import Rate, accuracy, construct, plant, success
from audit_cli.checkpoint.save import save_weights, write_atomically
from audit_cli.classifier import Classifier
from audit_cli.games.config import CLEAN, Network
from audit_cli.games.data import Data
from audit_cli.games.published import read_published
from audit_cli.games.recipes import Recipe, base_recipe, row
from audit_cli.losses import LOSSES
from audit_cli.models.create import create
from audit_cli.resume import Resume
from audit_cli.training import cross_entropy
from audit_cli.types import Context, TrustedData

SAVE_EVERY = 200  # steps between two savings of a training's state


@dataclass(frozen=True)
class Victim:
    """A trained model and how well its attack took. asr, floor: None for a clean model; floor is what the same trigger
    does to the clean network it started from, or, trained from scratch, how often the goal is given without trigger."""

    recipe: Recipe
    path: Path
    classifier: Classifier
    attack: Attack | None
    cda: Rate
    asr: Rate | None
    floor: Rate | None

    @property
    def planted(self) -> bool:
        """Does it obey its trigger? asr above the floor, intervals apart, and above twice what guessing gives."""
        if self.asr is None or self.floor is None:
            return False
        return self.asr.low > max(self.floor.high, 2 / self.classifier.num_classes)

    def facts(self) -> dict[str, object]:
        """What a result says about it."""
        rates = {"cda": self.cda, "asr": self.asr, "floor": self.floor}
        return {
            "victim": self.recipe.name,
            "attack": self.recipe.attack,
            "poison_count": self.recipe.count,
            "target": self.recipe.target,
            "loss": self.recipe.loss,
            "arch": self.recipe.network.arch,
            "planted": self.planted,
            "tuned": self.recipe.start is not None,  # from a clean network on
            **{key: asdict(rate) if rate else None for key, rate in rates.items()},
        }


@dataclass(frozen=True)
class Zoo:
    """The cache at `folder`: NAME.safetensors, and NAME.json once the model is measured."""

    folder: Path
    data: Data
    context: Context

    def victim(self, recipe: Recipe) -> Victim:
        """The victim of `recipe`, trained where it is not there yet."""
        with self._held(recipe):
            surrogate = self.base(recipe.surrogate) if recipe.surrogate else None
            attack = None if recipe.attack == CLEAN else self.attack(recipe, surrogate)
            classifier = self._trained(recipe, attack)
            facts = self.folder / f"{recipe.name}.json"
            if not facts.exists():
                rates = self._measure(recipe, attack, classifier)
                write_atomically(facts, json.dumps({"recipe": asdict(recipe), **rates}, indent=1) + "\n")
            stored = json.loads(facts.read_text())
        asr, floor = (Rate(**stored[key]) if stored[key] else None for key in ("asr", "floor"))
        return Victim(recipe, self._path(recipe), classifier, attack, Rate(**stored["cda"]), asr, floor)

    def attack(self, recipe: Recipe, surrogate: Classifier | None) -> Attack:
        """The attack of `recipe`. Raises UsageError on impossible settings."""
        return construct(
            recipe.attack,
            count=recipe.count,
            classes=len(self.data.train.class_names),
            target=recipe.target,
            surrogate=surrogate,
            settings=dict(recipe.settings),
        )

    def has(self, recipe: Recipe) -> bool:
        """Is its victim trained?"""
        return self._path(recipe).exists()

    def base(self, network: Network) -> Classifier:
        """The clean network victims start from, frozen. Raises UsageError where it is somebody else's and not there."""
        if network.weights is not None:
            published = read_published(self.folder, network, len(self.data.train.class_names))
            return published.on(self.context.device).frozen()
        recipe = base_recipe(network, self.data)
        with self._held(recipe):
            return self._trained(recipe, None).frozen()

    def _path(self, recipe: Recipe) -> Path:
        return self.folder / f"{recipe.name}.safetensors"

    def _trained(self, recipe: Recipe, attack: Attack | None) -> Classifier:
        path = self._path(recipe)
        classifier = self.untrained(recipe.network, recipe.seed)
        if not path.exists():
            self._train(recipe, attack, classifier)
            save_weights(path, classifier.module.state_dict(), {"format": "pt"})
            self._state(recipe).unlink(missing_ok=True)
        classifier.module.load_state_dict(load_file(path))
        return classifier.on(self.context.device).eval()

    def images(self, recipe: Recipe) -> TrustedData:
        """The clean images that a victim's training set is made of."""
        generator = replace(self.context, seed=recipe.seed).generator(stream=8)
        return subset(self.data.train, recipe.training.images, generator)

    def untrained(self, network: Network, seed: int = 0) -> Classifier:
        """Random weights that depend on the seed alone."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return create(network.arch, len(self.data.train.class_names), mean=network.mean, std=network.std)

    def _train(self, recipe: Recipe, attack: Attack | None, classifier: Classifier) -> None:
        if recipe.start is None and recipe.network.weights is not None:  # somebody else's as it is
            classifier.module.load_state_dict(self.base(recipe.network).module.state_dict())
            return
        if recipe.start is not None:
            classifier.module.load_state_dict(self.base(recipe.start).module.state_dict())
        context = replace(self.context, seed=recipe.seed)
        train = self.images(recipe)
        generator = context.generator(stream=7)
        loss = LOSSES[recipe.loss](generator) if recipe.loss else cross_entropy
        resume = Resume(self._state(recipe), SAVE_EVERY, generators=(generator,), label=recipe.digest)
        fit = recipe.training.fit(len(train))
        if attack is None:
            fit.run(classifier, train.images, train.labels, context, loss, stage=recipe.name, resume=resume)
            return
        poisoned = poison(attack, train, context)
        plant(attack, fit, classifier, poisoned, train.images, train.labels, context, loss, resume)

    def _measure(self, recipe: Recipe, attack: Attack | None, classifier: Classifier) -> dict[str, object]:
        measured = self.data.measured
        rates: dict[str, object] = {"cda": asdict(accuracy(classifier, measured, self.context))}
        if attack is None:
            return rates | {"asr": None, "floor": None}
        other = self.base(recipe.start) if recipe.start else classifier
        floor = success(attack, other, measured, self.context, triggered=recipe.start is not None)
        return rates | {"asr": asdict(success(attack, classifier, measured, self.context)), "floor": asdict(floor)}

    def _state(self, recipe: Recipe) -> Path:
        return self.folder / f"{recipe.name}.state"

    @contextmanager
    def _held(self, recipe: Recipe) -> Iterator[None]:
        """Nobody else trains this model meanwhile; a killed process lets go of it by itself."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{recipe.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def poison(attack: Attack, train: TrustedData, context: Context) -> Poisoned:
    """The poisoned training set of a victim; the same for the same context."""
    return attack.poison(train.images, train.labels, context.generator(stream=2))


def subset(data: TrustedData, images: int | None, generator: torch.Generator) -> TrustedData:
    """`images` of `data`, drawn without replacement; all when None or more than there are."""
    if images is None or images >= len(data):
        return data
    return data.take(torch.randperm(len(data), generator=generator)[:images])


def rehearse(wanted: Sequence[Recipe], zoo: Zoo) -> None:
    """Poisons the data once for every row that has no victim yet, without training anything, so that an impossible one
    is told at once.

    An untrained network stands in for a surrogate. Raises UsageError naming what is wrong.
    """
    seen = {row(recipe) for recipe in wanted if zoo.has(recipe)}
    for recipe in wanted:
        if recipe.attack == CLEAN or row(recipe) in seen:
            continue
        seen.add(row(recipe))
        stand_in = zoo.untrained(recipe.surrogate) if recipe.surrogate else None
        context = replace(zoo.context, seed=recipe.seed)
        poison(zoo.attack(recipe, stand_in), zoo.images(recipe), context)
