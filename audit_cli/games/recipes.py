"""Recipes: everything that decides a model's weights, written down, and those of a bench.

Data, network, training, attack, seed: two models of one recipe are one model.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace

from audit_cli.attacks.victim import settings_of
from audit_cli.games.config import CLEAN, Bench, Network, Population, Training
from audit_cli.games.data import Data

NEEDS_SURROGATE = ("adversarial", "parameter_controlled")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a model's weights. A base has the attack "clean" and no start; so has somebody else's
    network as it is, where the training says nothing."""

    data: str  # digest of the training images
    network: Network
    training: Training
    seed: int
    attack: str = CLEAN
    count: int = 0
    target: int | None = None
    settings: tuple[tuple[str, str], ...] = ()
    loss: str | None = None
    start: Network | None = None  # the base whose weights training starts from; None for random weights
    surrogate: Network | None = None  # the base that makes adversarial triggers

    @property
    def digest(self) -> str:
        text = json.dumps(asdict(self, dict_factory=_identity), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Readable, and unique through the digest."""
        count = f"-m{self.count}" if self.count else ""
        loss = f"-{self.loss}" if self.loss else ""
        return f"{self.attack}{count}{loss}-{self.network.arch}-s{self.seed}-{self.digest[:8]}"


def _identity(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """What a digest is made of; weights of somebody else's are told apart by their own."""
    later = ("sha256", "objective")  # fields that older recipes did not have
    return {key: value for key, value in pairs if key != "weights" and not (key in later and value is None)}


def recipes(bench: Bench, data: Data) -> list[Recipe]:
    """Every victim of the bench, one of each population and count, then the second of each, and so on: a run that is
    stopped has played all rows alike."""
    rows = [(p, count) for p in bench.populations for count in p.counts]
    most = max(p.victims for p in bench.populations)
    return [_recipe(bench, data, p, count, k) for k in range(most) for p, count in rows if k < p.victims]


def _recipe(bench: Bench, data: Data, population: Population, count: int, k: int) -> Recipe:
    """The k-th victim; its seed is shared with the k-th of every other population, its network and target vary."""
    networks = [bench.networks[i] for i in population.networks or range(len(bench.networks))]
    network = networks[k % len(networks)]
    if not population.tuned and network.base:
        return base_recipe(network, data)
    if not population.tuned:
        return Recipe(data.train.digest, network, bench.training, bench.seed + k)
    attack, classes = population.attack, len(data.train.class_names)
    return Recipe(
        data=data.train.digest,
        network=network,
        training=bench.training,
        seed=bench.seed + k,
        attack=attack,
        count=count,
        target=None if attack in (CLEAN, "all_to_all") else k % classes,
        settings=_varied(population, k, classes),
        loss=population.loss or bench.training.objective,
        start=network if network.trained else None,
        surrogate=_other_base(bench, network) if attack in NEEDS_SURROGATE else None,
    )


def _varied(population: Population, k: int, classes: int) -> tuple[tuple[str, str], ...]:
    """The population's settings; pattern seeds and the source class, where it leaves them open, vary with k."""
    if population.attack == CLEAN:
        return ()
    names = [field.name for field in settings_of(population.attack)]
    open_ = {name: str(k) for name in names if name.endswith("_seed")}
    if "source" in names:
        open_["source"] = str((k + 1) % classes)
    return tuple(sorted((open_ | dict(population.settings)).items()))


def _other_base(bench: Bench, network: Network) -> Network:
    """The attacker's surrogate: a base that is not the victim's own, where there is another one."""
    bases = [other for other in bench.networks if other.trained]
    return next((other for other in bases if other != network), network)


def base_recipe(network: Network, data: Data) -> Recipe:
    assert network.base is not None  # noqa: S101 - only networks with a base are asked for one
    loss = network.base.objective
    return Recipe(data.train.digest, replace(network, base=None), network.base, network.seed, loss=loss)


def row(recipe: Recipe) -> tuple[object, ...]:
    """What decides whether a victim is possible: everything but the seeds of its trigger."""
    settings = [(name, value) for name, value in recipe.settings if not name.endswith("_seed")]
    return recipe.attack, recipe.count, *settings
