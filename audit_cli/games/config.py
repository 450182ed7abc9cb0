"""What a bench plays: a TOML file becomes frozen dataclasses, with everything checked before anything is trained.

tier = "S"                     # named in every result: S two CPU cores, M ResNet-20/32, L a GPU and ResNet-18
trusted = 500                  # images of the test split that the defender owns; the rest of it measures
measured = 2000                # how many of that rest
redrawn = true                 # every victim is judged with trusted images of its own, from what is not measured on

[training]                     # of every victim
epochs = 4
images = 10000                 # of the training split, drawn anew for each victim; all of them when absent

[[network]]                    # victims take these in turn
arch = "resnet8-cifar"
base = { epochs = 8, lr = 0.2 }    # first train a clean network so, then the victim from it; absent: from scratch
# base = { epochs = 8, objective = "mixup" }   # one of LOSSES; absent: cross-entropy
# or somebody else's clean network, a file in the cache folder: weights = "resnet20.safetensors", sha256 = "12ab…"

[[population]]
attack = "badnets"             # or "clean"
counts = [100, 500]
victims = 20                   # of every count
settings = { share = 0.1 }     # other fields of the attack
loss = "contrastive"           # one of LOSSES; absent: cross-entropy
networks = [0]                 # only these networks; absent: all
tuned = false                  # clean only: the networks as their base makes them; absent: trained on, as victims are

[detectability]
detectors = ["calibrated"]
repeats = 10                   # under so many seeds
victims = 2                    # the first so many of each population and count; the others under one

[robustness]
repairs = ["ladder", "pivotal_tuning"]
victims = 3                    # the first so many of each population and count
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from audit_cli.attacks import ATTACKS
from audit_cli.attacks.victim import settings_of
from audit_cli.detectors import DETECTORS
from audit_cli.errors import PolicyError, UsageError
from audit_cli.losses import LOSSES
from audit_cli.models.create import create
from audit_cli.repairs import REPAIRS, construct
from audit_cli.report.sanitise import clean
from audit_cli.training import Fit

TIERS = ("S", "M", "L")
CLEAN = "clean"  # the population without an attack
LADDER = "ladder"  # the repair that `audit-cli repair` does
T = TypeVar("T")


@dataclass(frozen=True)
class Training:
    """One training run, in epochs of the images it sees."""

    epochs: float
    lr: float = 0.1  # Table IV of Lukas & Kerschbaum 2023, as the next two
    batch: int = 128
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"  # ours: fewer epochs than the paper's cosine needs
    pad: int = 4
    flip: bool = True
    images: int | None = None  # of the training split
    objective: str | None = None  # one of LOSSES; None is cross-entropy

    def __post_init__(self) -> None:
        if self.epochs <= 0 or (self.images is not None and self.images < 1):
            raise ValueError(f"epochs {self.epochs}, images {self.images}: must be positive")
        if self.objective is not None:
            _known(self.objective, tuple(LOSSES), "objective")
        self.fit(1)

    def fit(self, images: int) -> Fit:
        """The same as a `Fit` over so many images."""
        return Fit(
            max(1, round(self.epochs * images / self.batch)), self.lr, self.batch,
            weight_decay=self.weight_decay, schedule=self.schedule, pad=self.pad, flip=self.flip,
        )  # fmt: skip


@dataclass(frozen=True)
class Network:
    """What a victim starts from: random weights, or a clean network: one trained as `base` says with its own `seed`, or
    somebody else's `weights`, a file in the zoo's folder with that SHA-256."""

    arch: str
    base: Training | None = None
    seed: int = 0
    weights: str | None = None
    sha256: str | None = None
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)  # CIFAR-10's own
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)

    def __post_init__(self) -> None:
        if (self.weights is None) != (self.sha256 is None) or (self.weights and self.base):
            raise ValueError("`weights` need their `sha256`, and no `base`")
        if self.weights is not None and Path(self.weights).name != self.weights:
            raise ValueError(f"weights `{clean(self.weights, 60)}`: the name of a file in the cache folder, no path")

    @property
    def trained(self) -> bool:
        """Do victims start from a clean network, not from random weights?"""
        return self.base is not None or self.weights is not None


@dataclass(frozen=True)
class Population:
    """So many victims of one attack for every poison count."""

    attack: str
    victims: int
    counts: tuple[int, ...] = (0,)
    settings: tuple[tuple[str, str], ...] = ()
    loss: str | None = None
    networks: tuple[int, ...] | None = None
    tuned: bool = True  # trained on from its network as the bench says; False: the network itself


@dataclass(frozen=True)
class Bench:
    """A whole bench. name: the file's stem."""

    name: str
    tier: str
    training: Training
    networks: tuple[Network, ...]
    populations: tuple[Population, ...]
    trusted: int = 500  # 1 % of CIFAR-10
    measured: int = 2000
    redrawn: bool = False  # trusted images, for every victim
    seed: int = 0
    detectors: tuple[str, ...] = ()
    repeats: int = 1
    repeated: int = 0  # victims of each population and count that are scored `repeats` times
    only_planted: bool = False  # victims whose attack did not take are not scored
    repairs: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # repair -> hyper-parameters
    repaired: int = 0  # victims of each population and count that the robustness game is played on


def read_bench(path: Path) -> Bench:
    """The bench in the TOML file at `path`. Raises UsageError, naming the key, on whatever is not as above."""
    where = clean(str(path))
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{where}: cannot be read as TOML ({clean(str(error), 120)})") from error
    try:
        return _bench(path.stem, table)
    except (TypeError, ValueError, KeyError, PolicyError) as error:
        raise UsageError(f"{where}: {clean(str(error), 300)}") from error


def _bench(name: str, table: dict[str, Any]) -> Bench:
    networks = tuple(_network(entry, i) for i, entry in enumerate(_list(table.pop("network", []), "network")))
    populations = tuple(_population(entry, networks) for entry in _list(table.pop("population", []), "population"))
    if not networks or not populations:
        raise ValueError("needs at least one [[network]] and one [[population]]")
    detectability = _table(table.pop("detectability", {}), "detectability")
    robustness = _table(table.pop("robustness", {}), "robustness")
    bench = _make(
        Bench,
        table
        | {
            "name": name,
            "training": _make(Training, _table(table.pop("training", {}), "training"), "training"),
            "networks": networks,
            "populations": populations,
            "detectors": tuple(detectability.pop("detectors", ())),
            "repeats": detectability.pop("repeats", 1),
            "repeated": detectability.pop("victims", 0),
            "only_planted": detectability.pop("only_planted", False),
            "repairs": tuple(robustness.pop("repairs", ())),
            "repaired": robustness.pop("victims", 0),
            "settings": _table(robustness.pop("settings", {}), "robustness.settings"),
        },
        "the file",
    )
    for section, left in (("detectability", detectability), ("robustness", robustness)):
        if left:
            raise ValueError(f"[{section}]: unknown key `{next(iter(left))}`")
    _known(bench.tier, TIERS, "tier")
    for detector in bench.detectors:
        _known(detector, tuple(DETECTORS), "detector")
    for repair in bench.repairs:
        _known(repair, (LADDER, *REPAIRS), "repair")
    construct("clean_retraining", bench.settings)  # raises for settings that no repair takes
    return bench


def _network(entry: dict[str, Any], index: int) -> Network:
    where = f"network {index}"
    base = _make(Training, _table(entry.pop("base"), where), where) if "base" in entry else None
    network = _make(Network, {"seed": index} | entry | {"base": base}, where)
    create(network.arch, 2)  # raises for a name that is none
    return network


def _population(entry: dict[str, Any], networks: tuple[Network, ...]) -> Population:
    where = f"population `{clean(str(entry.get('attack')), 40)}`"
    settings = _table(entry.pop("settings", {}), where)
    counts = tuple(entry.pop("counts", (0,)))
    chosen = tuple(entry.pop("networks")) if "networks" in entry else None
    pairs = tuple((key, _text(value)) for key, value in sorted(settings.items()))
    population = _make(Population, entry | {"settings": pairs, "counts": counts, "networks": chosen}, where)
    _known(population.attack, (CLEAN, *ATTACKS), "attack")
    if population.loss is not None:
        _known(population.loss, tuple(LOSSES), f"{where}: loss")
    if population.victims < 1 or not counts or not all(type(c) is int for c in counts):
        raise ValueError(f"{where}: victims must be positive, counts whole numbers")
    if population.attack == CLEAN:
        if settings or counts != (0,):
            raise ValueError(f"{where}: has neither settings nor counts")
    elif unknown := [key for key, _ in pairs if key not in {f.name for f in settings_of(population.attack)}]:
        raise ValueError(f"{where}: no setting `{unknown[0]}`")
    if chosen is not None and not all(type(i) is int and 0 <= i < len(networks) for i in chosen):
        raise ValueError(f"{where}: networks are numbered 0 to {len(networks) - 1}")
    among = networks if chosen is None else tuple(networks[i] for i in chosen)
    if not population.tuned and (population.attack != CLEAN or not all(network.trained for network in among)):
        raise ValueError(f"{where}: `tuned = false` is for clean models, of networks with a `base` or `weights`")
    if not population.tuned and population.victims > len(among):
        raise ValueError(f"{where}: {population.victims} victims, but {len(among)} networks as they are")
    return population


def _make(kind: Callable[..., T], values: Mapping[str, Any], where: str) -> T:
    """A dataclass from a table; types are checked as far as TOML and the annotations go."""
    fields = {f.name: str(f.type) for f in dataclasses.fields(cast(Any, kind))}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f"{where}: unknown key `{clean(key, 40)}`; expected one of {', '.join(fields)}")
        wanted = fields[key].partition(" |")[0]
        fits = {"int": type(value) is int, "str": isinstance(value, str), "bool": isinstance(value, bool)}
        fits["float"] = type(value) in (int, float)
        if not (fits.get(wanted, True) or (value is None and "None" in fields[key])):
            raise ValueError(f"{where}: `{key}` must be a {wanted}, not {clean(repr(value), 40)}")
    try:
        return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{where}: must be a table")
    return dict(value)


def _list(value: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise TypeError(f"[[{where}]]: must be a list of tables")
    return [_table(entry, where) for entry in value]


def _known(value: str, choices: tuple[str, ...], what: str) -> None:
    if value not in choices:
        raise ValueError(f"{what} `{clean(str(value), 40)}`: unknown; expected one of {', '.join(choices)}")
