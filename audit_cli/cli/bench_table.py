"""`audit-cli bench table`: what the cells of a bench say, as tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from audit_cli.cli.console import emit
from audit_cli.errors import UsageError
from audit_cli.report.sanitise import clean

GAMES = ("zoo", "detectability", "robustness")


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

    cells: dict[str, Any] = {game: read_cells(folder / game) for game in GAMES}
    if not any(cells.values()):
        raise UsageError(f"{clean(str(folder))}: holds no bench cells; play `audit-cli bench zoo` first")
    rows: dict[str, list[summary.Row]] = {}
    victims = cells["zoo"] or list({c["victim"]: c for game in GAMES for c in cells[game]}.values())
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
    tiers = ", ".join(sorted({f"{c['tier']}" for game in GAMES for c in cells[game]}))
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
