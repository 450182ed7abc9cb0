"""Plots of a bench, with matplotlib (the `plots` extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from audit_cli.errors import UsageError
from audit_cli.games.config import CLEAN
from audit_cli.games.summary import Statistic, detection_table, grouped, mean

FORMATS = (".png", ".svg")


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise UsageError("plots need matplotlib; install audit-cli[plots]") from error
    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "audit-cli", "font.size": 9, "figure.dpi": 120})
    from matplotlib import pyplot

    return pyplot


def trade_off(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """cda against asr along each repair, one panel per attack; the mean of its victims at equal steps."""
    plt = _pyplot()
    panels = {key: group for key, group in grouped(cells, "attack", "poison_count").items() if key[0] != CLEAN}
    panels = {key: [c for c in group if c["planted"] and c["curve"]] for key, group in panels.items()}
    panels = {key: group for key, group in panels.items() if group}
    if not panels:
        raise UsageError("no curve to draw: play the robustness game with a repair other than the ladder first")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.6 * rows), squeeze=False, sharey=True)
    for axis, ((attack, count), group) in zip(axes.flat, panels.items(), strict=False):
        for (repair,), of_repair in grouped(group, "repair").items():
            points = grouped([p for c in of_repair for p in c["curve"]], "step")
            whole = [p for _, p in sorted(points.items()) if len(p) == len(of_repair)]
            x, y = ([mean(p[key] for p in at) for at in whole] for key in ("cda", "asr"))
            start = (mean(c["cda"]["value"] for c in of_repair), mean(c["asr"]["value"] for c in of_repair))
            axis.plot([start[0], *x], [start[1], *y], marker=".", markersize=3, linewidth=1, label=repair)
        axis.set_title(f"{attack}, m = {count}, {len({c['victim'] for c in group})} victims", fontsize=8)
        axis.set_xlabel("cda")
        axis.locator_params(axis="x", nbins=4)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    axes[0][0].set_ylabel("asr")
    axes[0][0].set_ylim(0, 1)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=7, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    _save(figure, path)


def by_count(
    cells: Sequence[Mapping[str, Any]],
    statistic: Statistic,
    path: Path,
    reference: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """asr and detectability against the poison count, one line per attack: undetectability versus robustness. Attacks
    with one count are left out where others have several. reference: the clean models, None: the cells' own."""
    plt = _pyplot()
    several = {attack for (attack,), of in grouped(cells, "attack").items() if len(grouped(of, "poison_count")) > 1}
    cells = [cell for cell in cells if not several or cell["attack"] in several | {CLEAN}]
    rows = detection_table([cell for cell in cells if "scores" in cell], statistic, reference=reference)
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 3), sharex=True)
    for (attack,), group in grouped(cells, "attack").items():
        if attack == CLEAN:
            continue
        at = {count: mean(c["asr"]["value"] for c in of) for (count,), of in grouped(group, "poison_count").items()}
        counts = sorted(at)
        line = left.plot(counts, [at[m] for m in counts], marker="o", markersize=3, label=attack)[0]
        seen = sorted((r["m"], r["auc"], r["low"], r["high"]) for r in rows if r["attack"] == attack and "auc" in r)
        if seen:
            m, auc, low, high = zip(*seen, strict=True)
            right.plot(m, auc, marker="o", markersize=3, color=line.get_color(), label=attack)
            right.fill_between(m, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    ticks = sorted({cell["poison_count"] for cell in cells if cell["attack"] != CLEAN})
    left.set_ylabel("asr")
    right.set_ylabel(f"ROC AUC of {statistic.name}")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks(ticks, [str(m) for m in ticks], rotation=45)
        axis.set_xticks([], minor=True)
        axis.set_xlabel("poison count m")
        axis.set_ylim(0, 1.02)
    left.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    """As PNG or SVG, by the suffix."""
    from audit_cli.checkpoint.save import replacing

    if path.suffix not in FORMATS:
        raise UsageError(f"{path}: plots are written as {' or '.join(FORMATS)}")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
