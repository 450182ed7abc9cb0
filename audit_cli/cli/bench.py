"""`audit-cli bench`: train populations of victims and play the papers' two games on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audit_cli.cli.console import say
from audit_cli.cli.scan import Device, Dtype, MaxMemory, Quiet, working
from audit_cli.errors import UsageError
from audit_cli.report.sanitise import clean

if TYPE_CHECKING:
    from audit_cli.games.cells import Cell
    from audit_cli.games.config import Bench
    from audit_cli.games.recipes import Recipe
    from audit_cli.games.zoo import Zoo
    from audit_cli.types import Context

UNFINISHED = 3  # the time budget ended before the last cell

Config = Annotated[Path, typer.Option("--config", "-c", help="The bench as a TOML file.")]
DataOption = Annotated[Path, typer.Option(help="Images with a train and a test split: CIFAR batches or .npz.")]
Results = Annotated[Path, typer.Option("--results", help="Folder for the cells: RESULTS/NAME/GAME/*.json.")]
Cache = Annotated[Path, typer.Option(help="Folder for trained victims, shared by all benches.")]
PartOption = Annotated[str, typer.Option(help="NUMBER/OF: play only this part of the cells.")]
Only = Annotated[list[str] | None, typer.Option("--attack", help="Play only these attacks, `clean` among them.")]
Seeds = Annotated[list[int] | None, typer.Option("--seed", help="Play only victims of these seeds.")]
Method = Annotated[list[str] | None, typer.Option(help="Play only these of the bench's detectors or repairs.")]
TimeBudget = Annotated[str | None, typer.Option(help="Stop after so long, such as 25m; the next run goes on.")]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What every game is asked on the command line."""

    config: Path
    data: Path
    results: Path
    cache: Path
    part: str
    attacks: list[str] | None
    seeds: list[int] | None
    time_budget: str | None
    device: str
    dtype: str
    max_memory: str | None
    quiet: bool


def zoo(
    config: Config,
    data: DataOption,
    results: Results = Path("bench-results"),
    cache: Cache = Path("bench-cache"),
    part: PartOption = "1/1",
    attack: Only = None,
    seed: Seeds = None,
    time_budget: TimeBudget = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    quiet: Quiet = False,
) -> int:
    """Train the bench's victims and measure how well their attacks took; 0 when all are there, 3 when some are left."""
    from audit_cli.games.cells import Cell

    def cells(zoo: Zoo, recipes: Sequence[Recipe], bench: Bench) -> list[Cell]:
        return [Cell(r.name, lambda r=r: zoo.victim(r).facts()) for r in recipes]  # type: ignore[misc]

    asked = Asked(config, data, results, cache, part, attack, seed, time_budget, device, dtype, max_memory, quiet)
    return _play("zoo", cells, asked)


def detectability(
    config: Config,
    data: DataOption,
    results: Results = Path("bench-results"),
    cache: Cache = Path("bench-cache"),
    part: PartOption = "1/1",
    attack: Only = None,
    seed: Seeds = None,
    method: Method = None,
    time_budget: TimeBudget = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    quiet: Quiet = False,
) -> int:
    """Can the detectors tell poisoned models from clean ones? 0 when all cells are there, 3 when some are left."""
    from audit_cli.games.detectability import detectability as game

    def cells(zoo: Zoo, recipes: Sequence[Recipe], bench: Bench) -> list[Cell]:
        methods = _chosen(bench.detectors, method, f"{clean(str(config))}: [detectability]")
        return game(zoo, recipes, methods, bench.repeated, bench.repeats, bench.only_planted)

    asked = Asked(config, data, results, cache, part, attack, seed, time_budget, device, dtype, max_memory, quiet)
    return _play("detectability", cells, asked)


def robustness(
    config: Config,
    data: DataOption,
    results: Results = Path("bench-results"),
    cache: Cache = Path("bench-cache"),
    part: PartOption = "1/1",
    attack: Only = None,
    seed: Seeds = None,
    method: Method = None,
    time_budget: TimeBudget = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    max_memory: MaxMemory = None,
    quiet: Quiet = False,
) -> int:
    """Do the backdoors survive the repairs? 0 when all cells are there, 3 when some are left."""
    from audit_cli.games.robustness import robustness as game

    def cells(zoo: Zoo, recipes: Sequence[Recipe], bench: Bench) -> list[Cell]:
        methods = _chosen(bench.repairs, method, f"{clean(str(config))}: [robustness]")
        if bench.repaired < 1:
            raise UsageError(f"{clean(str(config))}: [robustness] names no number of victims")
        chosen = [r for r in recipes if r.seed - bench.seed < bench.repaired]
        return game(zoo, chosen, methods, bench.settings)

    asked = Asked(config, data, results, cache, part, attack, seed, time_budget, device, dtype, max_memory, quiet)
    return _play("robustness", cells, asked)


def _chosen(methods: Sequence[str], only: Sequence[str] | None, where: str) -> list[str]:
    """The bench's methods, or those of them the user wants. Raises UsageError when that leaves none."""
    chosen = [method for method in methods if not only or method in only]
    if not chosen:
        wanted = f"none of {clean(', '.join(only), 60)}" if only else "no method"
        raise UsageError(f"{where} names {wanted}; it has {', '.join(methods) or 'none'}")
    return chosen


def _play(game: str, cells_of: Callable[[Zoo, Sequence[Recipe], Bench], list[Cell]], asked: Asked) -> int:
    """Everything the games have in common: read and check, then play the cells that are not there yet."""
    from audit_cli.games.cells import Part, play
    from audit_cli.games.config import read_bench
    from audit_cli.games.data import read_data
    from audit_cli.games.recipes import recipes
    from audit_cli.games.zoo import Zoo, rehearse
    from audit_cli.runtime import Stopwatch, environment

    share = Part.parse(asked.part)
    bench = read_bench(asked.config)
    seconds = None if asked.time_budget is None else _seconds(asked.time_budget)
    with _context(asked.device, asked.dtype, bench.seed, seconds, asked.max_memory, asked.quiet) as context:
        material = Zoo(asked.cache, read_data(asked.data, bench), context)
        wanted = [r for r in recipes(bench, material.data) if not asked.attacks or r.attack in asked.attacks]
        if not wanted:
            raise UsageError(f"--attack {clean(' '.join(asked.attacks or []), 60)}: the bench has no such population")
        wanted = [r for r in wanted if not asked.seeds or r.seed in asked.seeds]
        if not wanted:
            given = " ".join(map(str, asked.seeds or []))
            raise UsageError(f"--seed {given}: the bench has no such victim; its seeds begin with {bench.seed}")
        rehearse(wanted, material)
        about: dict[str, object] = {"tier": bench.tier, "bench": bench.name}

        def made(took: float) -> dict[str, object]:
            told = environment(Stopwatch(), context.device, context.dtype, context.seed)
            told = {key: told[key] for key in ("torch", "python", "device", "dtype", "threads", "peak_memory_bytes")}
            names = asked.config.name, asked.data.name  # folders tell nobody
            command = ["audit-cli", "bench", game, "--config", names[0], "--data", names[1]]
            return {"command": command, "seconds": round(took, 2), **told}

        cells = [dataclasses.replace(c, play=_with(c.play, about)) for c in cells_of(material, wanted, bench)]
        folder = asked.results / bench.name / game
        left = play(share.take(cells), folder, made, lambda line: say(line, quiet=asked.quiet))
    if left:
        say(f"{left} cells are left; run the same command again", quiet=asked.quiet)
    return UNFINISHED if left else 0


def _with(inner: Callable[[], dict[str, object]], about: dict[str, object]) -> Callable[[], dict[str, object]]:
    return lambda: {**about, **inner()}


@contextmanager
def _context(
    device: str, dtype: str, seed: int, seconds: float | None, max_memory: str | None, quiet: bool
) -> Iterator[Context]:
    from audit_cli.policy import Policy

    with working(device, dtype, seed, seconds, max_memory, quiet, Policy.load("default")) as context:
        yield context


def _seconds(text: str) -> float:
    """`90`, `90s`, `25m`, `2h` -> seconds. Raises UsageError."""
    units = {"s": 1.0, "m": 60.0, "h": 3600.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        value = float(number) * unit
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"--time-budget {clean(text, 20)}: expected a time such as 90s, 25m or 2h")
    return value
