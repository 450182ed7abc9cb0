"""What each rule and trigger family is worth beside what it costs, and whether a detector says the same twice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from audit_cli.calibration import RULE
from audit_cli.detectors.calibrated import APART
from audit_cli.games.against import comparable
from audit_cli.games.by_class import BY_CLASS, families_compared, with_by_class
from audit_cli.games.config import CLEAN
from audit_cli.games.summary import (
    Row,
    Statistic,
    bootstrap,
    false_alarms,
    fires,
    flagged,
    grouped,
    mean,
    scores_of,
    statistics,
    tpr_at,
)
from audit_cli.metrics import auroc, wilson

Cells = Sequence[Mapping[str, Any]]


def ablation_table(cells: Cells, reference: Cells = ()) -> list[Row]:
    """For every rule of one detector's cells: all its families together, each alone, and all but each; by score, and
    for BD001 as a calibration from the clean models compares them, there with each of those that it leaves out, too.

    auc: of all planted victims of all attacks against the clean models, those of `reference` that are comparable where
    it has some, so that an attack counts as often as it has victims. false alarms: of those clean models by score; None
    class by class, where they are compared with one another (`false_alarms`). cpu s: of the families used, mean over
    the models whose cells tell it of all families, else of the whole detector.
    """
    most = max((len(c.get("costs", {})) for c in cells), default=0)
    timed = [c for c in cells if len(c.get("costs", {})) == most]
    rows = []
    for statistic in variants(cells):
        known = comparable(cells, reference, statistic) if reference else cells
        rows += _worth(statistic.name, cells, known, statistic, timed, statistic)
    for name, families in compared(cells).items():
        priced = Statistic(RULE, families)
        known = comparable(cells, reference, priced) if reference else cells
        every, standing = (with_by_class(c, known, families) for c in (cells, known))
        rows += _worth(name, every, standing, Statistic(BY_CLASS), timed, priced)
    return rows


def _worth(
    name: str, cells: Cells, reference: Cells, statistic: Statistic, timed: Cells, priced: Statistic
) -> list[Row]:
    """The row of `statistic`, which costs what `priced` does; none where a kind of models lacks it."""
    clean, planted = [c for c in reference if c["attack"] == CLEAN], [c for c in cells if c["planted"]]
    negatives, positives = scores_of(clean, statistic), scores_of(planted, statistic)
    if not len(negatives) or not len(positives):
        return []
    low, high = bootstrap(negatives, positives, auroc)
    row: Row = {"statistic": name, "clean": len(negatives), "planted": len(positives)}
    row |= {"auc": auroc(negatives, positives), "low": low, "high": high}
    row |= {"tpr@0.05": tpr_at(negatives, positives, 0.05)}
    alarms, caught = false_alarms(clean, statistic), flagged(planted, statistic)
    if "flagged" in alarms and caught:
        row |= {"false alarms": alarms["flagged"], "flagged": caught["flagged"]}
    return [row | {"cpu s": mean(cost(c, priced) for c in timed)}]


def variants(cells: Cells) -> list[Statistic]:
    """Every statistic of the cells, and for rules of three families or more, all of them but one."""
    found = statistics(cells)
    alone: dict[str, list[str]] = {}
    for statistic in found:
        if statistic.families is not None:
            alone.setdefault(statistic.rule, []).extend(statistic.families)
    for rule, families in alone.items():
        if len(families) > 2:
            found += [Statistic(rule, tuple(f for f in families if f != left)) for left in families]
    return found


def compared(cells: Cells) -> dict[str, tuple[str, ...]]:
    """What a calibration may be made of, by name: the families it has, each alone, all but each, and all and one that
    it leaves out."""
    keys = dict.fromkeys(key for cell in cells for key in cell["scores"])
    every = [family for rule, _, family in (key.partition("/") for key in keys) if rule == RULE]
    usual = families_compared(cells)
    found = {BY_CLASS: usual} if usual else {}
    if len(every) > 1:
        found |= {f"{BY_CLASS}, {f} alone": (f,) for f in every}
    if len(usual) > 2:
        found |= {f"{BY_CLASS} without {left}": tuple(f for f in usual if f != left) for left in usual}
    if usual:
        found |= {f"{BY_CLASS} with {f}": (*usual, f) for f in every if f in APART}
    return found


def cost(cell: Mapping[str, Any], statistic: Statistic) -> float:
    """CPU seconds of the families that `statistic` needs, as far as the cell tells them, NaN where it tells none of
    these; of the whole detector where it tells nothing apart."""
    costs: Mapping[str, float] = cell.get("costs", {})
    used = [
        seconds
        for rule, _, family, seconds in ((*key.partition("/"), seconds) for key, seconds in costs.items())
        if statistic.rule.startswith(rule) and (statistic.families is None or family in statistic.families)
    ]
    if statistic.families is None or not costs:
        return float(cell["cpu_seconds"])
    return sum(used) if used else math.nan


def stability_table(cells: Cells, statistic: Statistic) -> list[Row]:
    """A row for the clean and one for the planted models that were scored under several seeds; none where nothing is
    decided by `statistic`.

    same verdict: models all of whose runs end alike, with a 95 % Wilson interval. same class: of those flagged at least
    once, the share whose runs all name one class. spread: mean over models of the largest less the smallest score.
    """
    rows = []
    told = [cell for cell in cells if fires(cell, statistic) is not None]
    models = [runs for runs in grouped(told, "victim").values() if len(runs) > 1]
    for name, wanted in (("clean", False), ("planted", True)):
        chosen = [runs for runs in models if bool(runs[0]["planted"]) == wanted]
        if not wanted:
            chosen = [runs for runs in chosen if runs[0]["attack"] == CLEAN]
        if not chosen:
            continue
        fired = [[bool(fires(run, statistic)) for run in runs] for runs in chosen]
        agree = [len(set(f)) == 1 for f in fired]
        low, high = wilson(sum(agree), len(agree))
        named = [{statistic.named(run) for run in runs} for runs, f in zip(chosen, fired, strict=True) if any(f)]
        scores = [scores_of(runs, statistic) for runs in chosen]
        row: Row = {"models": name, "of them": len(chosen), "runs": min(map(len, chosen))}
        row |= {"same verdict": mean(map(float, agree)), "low": low, "high": high}
        row |= {"same class": mean(float(len(names) == 1) for names in named)}
        row |= {"flagged runs": mean(float(f) for runs in fired for f in runs)}
        rows.append(row | {"spread": mean(float(s.max() - s.min()) for s in scores)})
    return rows
