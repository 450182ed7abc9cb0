"""`audit-cli bench`: train populations of victims and play the papers' two games on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audit_cli.cli.console import emit, say
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
TABLES = ("zoo", "detectability", "robustness")

Config = Annotated[Path, typer.Option("--config", "-c", help="The bench as a TOML file.")]
DataOption = Annotated[Path, typer.Option(help="Images with a train and a test split: CIFAR batches or .npz.")]
Results = Annotated[Path, typer.Option("--results", help="Folder for the cells: RESULTS/NAME/GAME/*.json.")]
Cache = Annotated[Path, typer.Option(help="Folder for trained victims, shared by all benches.")]
PartOption = Annotated[str, typer.Option(help="NUMBER/OF: play only this part of the cells.")]
Only = Annotated[list[str] | None, typer.Option("--attack", help="Play only these attacks, `clean` among them.")]
Method = Annotated[list[str] | None, typer.Option(help="Play only these of the bench's detectors or repairs.")]
TimeBudget = Annotated[str | None, typer.Option(help="Stop after so long, such as 25m; the next run goes on.")]


def zoo(
    config: Config,
    data: DataOption,
    results: Results = Path("bench-results"),
    cache: Cache = Path("bench-cache"),
    part: PartOption = "1/1",
    attack: Only = None,
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

    return _play(
        "zoo", cells, config, data, results, cache, part, attack, time_budget, device, dtype, max_memory, quiet
    )


def detectability(
    config: Config,
    data: DataOption,
    results: Results = Path("bench-results"),
    cache: Cache = Path("bench-cache"),
    part: PartOption = "1/1",
    attack: Only = None,
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

    return _play(
        "detectability",
        cells,
        config,
        data,
        results,
        cache,
        part,
        attack,
        time_budget,
        device,
        dtype,
        max_memory,
        quiet,
    )


def robustness(
    config: Config,
    data: DataOption,
    results: Results = Path("bench-results"),
    cache: Cache = Path("bench-cache"),
    part: PartOption = "1/1",
    attack: Only = None,
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

    return _play(
        "robustness", cells, config, data, results, cache, part, attack, time_budget, device, dtype, max_memory, quiet
    )


def table(
    folder: Annotated[Path, typer.Argument(help="RESULTS/NAME of a bench.")],
    rule: Annotated[str, typer.Option(help="Statistic of the detectability table; `all` for every one.")] = "BD001",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Where the table goes; else stdout.")] = None,
    what_pays: Annotated[
        bool, typer.Option("--ablation", help="What each rule and trigger family adds, and its cost.")
    ] = False,
    against: Annotated[
        list[Path] | None,
        typer.Option(help="RESULTS/NAME of a bench whose clean models to compare with; else its own."),
    ] = None,
    by_network: Annotated[bool, typer.Option("--by-network", help="Attacks for each network apart.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The rows as JSON instead of Markdown.")] = False,
    trade_off: Annotated[Path | None, typer.Option(help="PNG or SVG: cda against asr along the repairs.")] = None,
    by_count: Annotated[Path | None, typer.Option(help="PNG or SVG: asr and AUC against the poison count.")] = None,
) -> int:
    """Render what the cells in FOLDER say: attacks, detectability, robustness."""
    from audit_cli.calibration import RULE
    from audit_cli.checkpoint.save import write_atomically
    from audit_cli.games import summary, tables
    from audit_cli.games.against import Against
    from audit_cli.games.by_class import BY_CLASS
    from audit_cli.games.cells import read_cells
    from audit_cli.games.config import CLEAN

    cells: dict[str, Any] = {game: read_cells(folder / game) for game in TABLES}
    if not any(cells.values()):
        raise UsageError(f"{clean(str(folder))}: holds no bench cells; play `audit-cli bench zoo` first")
    rows: dict[str, list[summary.Row]] = {}
    victims = cells["zoo"] or list({c["victim"]: c for game in TABLES for c in cells[game]}.values())
    rows["attacks"] = summary.attacks_table(victims, by_network)
    others = [cell for bench in against or () for cell in read_cells(bench / "detectability")]
    where = f"--against {clean(', '.join(map(str, against or ())))}"
    if against and not any(cell["attack"] == CLEAN for cell in others):
        raise UsageError(f"{where}: holds no detectability cells of clean models")
    rows |= _detection(cells["detectability"], others, rule, what_pays, where)
    if cells["robustness"]:
        rows["robustness"] = summary.repair_table(cells["robustness"])
        if beside := summary.side_by_side(cells["robustness"]):
            rows["robustness, asr after the repair (points of cda lost)"] = beside
    if trade_off or by_count:
        from audit_cli.games import plots

        if trade_off:
            plots.trade_off(cells["robustness"], trade_off)
        if by_count:
            known = Against([c for c in cells["detectability"] if not c.get("turn")], others)
            wanted = RULE if rule == "all" else rule
            compared = wanted == RULE and any(s.rule == BY_CLASS for s in summary.statistics(known.scored))
            statistic = summary.Statistic(BY_CLASS if compared else wanted)
            plots.by_count(known.scored or victims, statistic, by_count, known.reference(statistic))
    tiers = ", ".join(sorted({f"{c['tier']}" for game in TABLES for c in cells[game]}))
    written = (f"\n### {name} (tier {tiers})\n\n{tables.markdown(of)}" for name, of in rows.items())
    text = tables.as_json(tiers, rows) if as_json else "\n".join(written)
    if out:
        write_atomically(out, text.strip() + "\n")
    else:
        emit(text.strip())
    return 0


def _detection(
    cells: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], rule: str, what_pays: bool, where: str
) -> dict[str, list[dict[str, Any]]]:
    """The tables of the detectability game, for each detector: by statistic, over seeds, and what each part adds.
    others: cells of the benches `where`, whose clean models are compared with; none: the cells' own. Raises UsageError
    when they hold nothing to compare a detector's scores with."""
    from audit_cli.calibration import RULE
    from audit_cli.games import ablation, summary
    from audit_cli.games.against import Against
    from audit_cli.games.by_class import BY_CLASS

    def asked(statistic: summary.Statistic) -> bool:
        return rule in ("all", statistic.name) or (rule, statistic.name) == (RULE, BY_CLASS)

    rows: dict[str, list[dict[str, Any]]] = {}
    for (detector,), group in summary.grouped(cells, "detector").items():
        known = Against(group, others)
        told = [statistic for statistic in known.statistics if what_pays or asked(statistic)]
        if others and told and not any(map(known.reference, told)):
            raise UsageError(
                f"{where}: holds no clean models with the scores of `{clean(str(detector), 40)}`; "
                "play its detectability with that detector, or leave it away"
            )
        once = [cell for cell in known.scored if not cell.get("turn")]
        for statistic in filter(asked, summary.statistics(once)):
            table = summary.detection_table(once, statistic, reference=known.reference(statistic))
            rows[f"detectability, {detector}, {statistic.name}"] = table
            if len(once) < len(group) and (stable := ablation.stability_table(known.scored, statistic)):
                rows[f"stability, {detector}, {statistic.name}"] = stable
        if what_pays:
            alone = [cell for cell in group if not cell.get("turn")]
            rows[f"ablation, {detector}"] = ablation.ablation_table(alone, others)
    return rows


def _chosen(methods: Sequence[str], only: Sequence[str] | None, where: str) -> list[str]:
    """The bench's methods, or those of them the user wants. Raises UsageError when that leaves none."""
    chosen = [method for method in methods if not only or method in only]
    if not chosen:
        wanted = f"none of {clean(', '.join(only), 60)}" if only else "no method"
        raise UsageError(f"{where} names {wanted}; it has {', '.join(methods) or 'none'}")
    return chosen


def _play(
    game: str,
    cells_of: Callable[[Zoo, Sequence[Recipe], Bench], list[Cell]],
    config: Path,
    data: Path,
    results: Path,
    cache: Path,
    part: str,
    only: list[str] | None,
    time_budget: str | None,
    device: str,
    dtype: str,
    max_memory: str | None,
    quiet: bool,
) -> int:
    """Everything the games have in common: read and check, then play the cells that are not there yet."""
    from audit_cli.games.cells import Part, play
    from audit_cli.games.config import read_bench
    from audit_cli.games.data import read_data
    from audit_cli.games.recipes import recipes
    from audit_cli.games.zoo import Zoo, rehearse
    from audit_cli.runtime import Stopwatch, environment

    share = Part.parse(part)
    bench = read_bench(config)
    seconds = None if time_budget is None else _seconds(time_budget)
    with _context(device, dtype, bench.seed, seconds, max_memory, quiet) as context:
        material = Zoo(cache, read_data(data, bench), context)
        wanted = [r for r in recipes(bench, material.data) if not only or r.attack in only]
        if not wanted:
            raise UsageError(f"--attack {clean(' '.join(only or []), 60)}: the bench has no such population")
        rehearse(wanted, material)
        about: dict[str, object] = {"tier": bench.tier, "bench": bench.name}

        def made(took: float) -> dict[str, object]:
            told = environment(Stopwatch(), context.device, context.dtype, context.seed)
            told = {key: told[key] for key in ("torch", "python", "device", "dtype", "threads", "peak_memory_bytes")}
            command = ["audit-cli", "bench", game, "--config", config.name, "--data", data.name]  # folders tell nobody
            return {"command": command, "seconds": round(took, 2), **told}

        cells = [dataclasses.replace(c, play=_with(c.play, about)) for c in cells_of(material, wanted, bench)]
        folder = results / bench.name / game
        left = play(share.take(cells), folder, made, lambda line: say(line, quiet=quiet))
    if left:
        say(f"{left} cells are left; run the same command again", quiet=quiet)
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
