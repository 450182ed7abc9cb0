"""Tables from cells: what a bench found, as plain rows; `tables.py` renders them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from audit_cli.calibration import ONLY_COMPARED, RULE
from audit_cli.games.by_class import BY_CLASS
from audit_cli.games.config import CLEAN
from audit_cli.metrics import auroc, wilson
from audit_cli.policy import Policy

Row = dict[str, Any]
BOOTSTRAP = 2_000  # resamplings; the interval's ends then move by about a hundredth of its width
FALSE_ALARMS = (0.01, 0.05)


def grouped(cells: Sequence[Mapping[str, Any]], *keys: str) -> dict[tuple[Any, ...], list[Mapping[str, Any]]]:
    """Cells by their values of `keys`, in order of first appearance."""
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault(tuple(cell.get(key) for key in keys), []).append(cell)
    return groups


def attacks_table(victims: Sequence[Mapping[str, Any]], by_network: bool = False) -> list[Row]:
    """cda and asr of each population, mean over its victims, and how many obey their trigger; with `by_network` a row
    for each network too."""
    keys = ("attack", "poison_count", "loss", *(["arch"] if by_network else []))
    rows, losses = [], any(victim.get("loss") for victim in victims)
    for (attack, count, loss, *arch), group in sorted_groups(victims, *keys):
        row: Row = {"attack": attack, "m": count or ""}
        row |= {"loss": loss or ""} if losses else {}
        row |= {"network": arch[0]} if arch else {}
        row |= {"victims": len(group), "cda": mean(v["cda"]["value"] for v in group)}
        if attack != CLEAN:
            values = [v["asr"]["value"] for v in group]
            row |= {"asr": mean(values), "from": min(values), "to": max(values)}
            row |= {
                "clean model": mean(v["floor"]["value"] for v in group),
                "planted": sum(v["planted"] for v in group),
            }
        rows.append(row)
    return rows


def sorted_groups(
    cells: Sequence[Mapping[str, Any]], *keys: str
) -> list[tuple[tuple[Any, ...], list[Mapping[str, Any]]]]:
    """`grouped`, the clean population first, then by the keys' values."""

    def order(item: tuple[tuple[Any, ...], object]) -> tuple[Any, ...]:
        attack, *rest = item[0]
        return (attack != CLEAN, attack, *((value is not None, value if value is not None else 0) for value in rest))

    return sorted(grouped(cells, *keys).items(), key=order)


@dataclass(frozen=True)
class Statistic:
    """One number per model from a detectability cell: the largest score over classes and trigger families, each in
    units of the default policy's threshold. families: those of `rule` that count; None for all with a threshold."""

    rule: str
    families: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return self.rule if self.families is None else f"{self.rule}/{'+'.join(self.families)}"

    def of(self, cell: Mapping[str, Any]) -> float | None:
        """The largest score over families and classes; None when the rule says nothing of this model."""
        return max((score for _, _, score in self._scores(cell)), default=None)

    def named(self, cell: Mapping[str, Any]) -> int | None:
        """The class with the largest score; class by class, the one a verdict names."""
        if self.rule == BY_CLASS and "named" in cell:
            return int(cell["named"])
        best = max(self._scores(cell), key=lambda entry: entry[2], default=None)
        return None if best is None or best[1] == "None" else int(best[1])

    def counts(self, key: str) -> bool:
        """Is it made of the cells' scores under `key`, RULE or RULE/FAMILY?"""
        rule, _, family = key.partition("/")
        return rule == self.rule and (family not in ONLY_COMPARED if self.families is None else family in self.families)

    def _scores(self, cell: Mapping[str, Any]) -> list[tuple[str, str, float]]:
        found = []
        for key, classes in cell["scores"].items():
            if self.counts(key):
                rule, _, family = key.partition("/")
                limit = unit(rule, family)
                found += [(family, c, values[0] / limit) for c, values in classes.items()]
        return found


@lru_cache
def unit(rule: str, family: str) -> float:
    """The default policy's threshold; 1 for a rule it does not know."""
    rules = Policy.load("default").rules
    return rules[rule].limit(family) if rule in rules else 1.0


def statistics(cells: Sequence[Mapping[str, Any]]) -> list[Statistic]:
    """Every rule over all its families, and where it has several, over each."""
    keys = dict.fromkeys(key for cell in cells for key in cell["scores"])
    rules: dict[str, list[str]] = {}
    for key in keys:
        rule, _, family = key.partition("/")
        rules.setdefault(rule, []).append(family)
    found = []
    for rule, families in sorted(rules.items()):
        found.append(Statistic(rule))
        found += [Statistic(rule, (family,)) for family in families if len(families) > 1]
    return found


def detection_table(
    cells: Sequence[Mapping[str, Any]],
    statistic: Statistic,
    seed: int = 0,
    reference: Sequence[Mapping[str, Any]] | None = None,
) -> list[Row]:
    """A row per attack and count against the clean models of `reference`, None: the cells' own, and one for the cells'
    own clean models. Victims whose attack did not take are left out and counted. flagged: share over the
    default policy's threshold, or with a p-value it does not accept; of clean models see `false_alarms`."""
    own = [c for c in cells if c["attack"] == CLEAN]
    clean = scores_of(own if reference is None else [c for c in reference if c["attack"] == CLEAN], statistic)
    rows: list[Row] = []
    for (attack, count), group in sorted_groups(cells, "attack", "poison_count"):
        if attack == CLEAN:
            continue
        planted = [c for c in group if c["planted"]]
        scores = scores_of(planted, statistic)
        row: Row = {"attack": attack, "m": count, "clean": len(clean), "planted": len(planted), "of": len(group)}
        row["asr"] = mean(c["asr"]["value"] for c in planted)
        if len(scores) and len(clean):
            low, high = bootstrap(clean, scores, auroc, seed)
            row |= {"auc": auroc(clean, scores), "low": low, "high": high}
            row |= {f"tpr@{rate:g}": tpr_at(clean, scores, rate) for rate in FALSE_ALARMS}
        if len(scores):
            row |= flagged(planted, statistic)
            right = [statistic.named(c) == c["target"] for c in planted if c["target"] is not None]
            row["target named"] = mean(map(float, right))
        rows.append(row)
    if own:
        rows.append({"attack": CLEAN, **false_alarms(own, statistic)})
    return rows


def fires(cell: Mapping[str, Any], statistic: Statistic) -> bool | None:
    """Does the default policy fail the model by `statistic`? None where nothing is decided by it."""
    if statistic.rule != BY_CLASS:
        value = statistic.of(cell)
        return None if value is None else value >= 1
    alpha = Policy.load("default").rules[RULE].alpha
    if alpha is None or "p_value" not in cell:
        return None
    return bool(cell["p_value"] <= alpha)


def flagged(cells: Sequence[Mapping[str, Any]], statistic: Statistic) -> Row:
    """Share of the models that the default policy fails by `statistic`, with a 95 % Wilson interval. Empty where
    nothing is decided by it."""
    told = [fired for cell in cells if (fired := fires(cell, statistic)) is not None]
    if not told:
        return {}
    low, high = wilson(sum(told), len(told))
    return {"flagged": sum(told) / len(told), "flagged from": low, "flagged to": high}


def false_alarms(clean: Sequence[Mapping[str, Any]], statistic: Statistic) -> Row:
    """`flagged` of clean models, and how many they are. Class by class only those count that are not among the models
    compared with; where none is left, the rate is None: of n models compared with one another the most unusual
    floor(alpha n) are flagged, whatever they are like."""
    outside = [cell for cell in clean if statistic.rule != BY_CLASS or not cell.get("among")]
    if outside:
        return {"clean": len(outside), **flagged(outside, statistic)}
    return {"clean": len(clean), **dict.fromkeys(flagged(clean, statistic))}


def scores_of(cells: Sequence[Mapping[str, Any]], statistic: Statistic) -> Tensor:
    """(N,) one score per model that has one."""
    values = [value for value in map(statistic.of, cells) if value is not None]
    return torch.tensor(values, dtype=torch.float64)


def bootstrap(
    negatives: Tensor, positives: Tensor, measure: Callable[[Tensor, Tensor], float], seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of `measure`, models of both kinds resampled with replacement (Efron, 1979)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(BOOTSTRAP)
    for b in range(BOOTSTRAP):
        i = torch.randint(len(negatives), (len(negatives),), generator=generator)
        j = torch.randint(len(positives), (len(positives),), generator=generator)
        values[b] = measure(negatives[i], positives[j])
    low, high = torch.quantile(values, torch.tensor([0.025, 0.975])).tolist()
    return low, high


def tpr_at(negatives: Tensor, positives: Tensor, rate: float) -> float:
    """Share of positives above the lowest threshold that at most `rate` of the negatives pass.

    With fewer than 1 / rate negatives that is the largest of them: the true false-alarm rate is then not known to be
    as low as `rate`.
    """
    allowed = int(rate * len(negatives))
    threshold = negatives.sort(descending=True).values[allowed]
    return float((positives > threshold).double().mean())


def repair_table(cells: Sequence[Mapping[str, Any]], residual: float = 0.05, drop: float = 0.02) -> list[Row]:
    """A row per attack, count and repair. repaired: residual asr at most `residual` (or no more than on a clean model)
    and cda down by at most `drop`."""
    rows, losses = [], any(cell.get("loss") for cell in cells)
    for (attack, count, loss, repair), group in sorted_groups(cells, "attack", "poison_count", "loss", "repair"):
        used = [c for c in group if c["planted"] or attack == CLEAN]
        if not used:
            continue
        row: Row = {"attack": attack, "m": count or ""} | ({"loss": loss or ""} if losses else {})
        row |= {"repair": repair, "victims": len(used)}
        row |= {"cda": mean(c["cda"]["value"] for c in used), "drop": mean(c["cda_drop"]["value"] for c in used)}
        if attack != CLEAN:
            row["asr"] = mean(c["asr"]["value"] for c in used)
            row["asr after"] = mean(c["asr_after"]["value"] for c in used)
            row["worst"] = max(c["asr_after"]["value"] for c in used)
            row["clean model"] = mean(c["floor"]["value"] for c in used)
            row["repaired"] = sum(is_repaired(c, residual, drop) for c in used)
        row["cpu s"] = mean(c["cpu_seconds"] for c in used)
        rows.append(row)
    return rows


def side_by_side(cells: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row per repair, a column per attack and count: mean residual asr, and in brackets the points of cda lost; first
    the asr before, last that of a clean model. Lukas, Kerschbaum: Pick your Poison, 2023, Table III."""
    used = [c for c in cells if c["planted"] and c["attack"] != CLEAN]
    columns = sorted_groups(used, "attack", "poison_count", "loss")
    rows: dict[str, Row] = {name: {"repair": name} for name in ("none", *dict.fromkeys(c["repair"] for c in used))}
    rows["a clean model"] = {"repair": "a clean model"}
    for (attack, count, loss), group in columns:
        column = f"{attack}, {count}" + (f", {loss}" if loss else "")
        rows["none"][column] = f"{mean(c['asr']['value'] for c in group):.2f}"
        for (repair,), repaired in grouped(group, "repair").items():
            left, lost = mean(c["asr_after"]["value"] for c in repaired), mean(c["cda_drop"]["value"] for c in repaired)
            rows[repair][column] = f"{left:.2f} ({100 * lost:.1f})"
        rows["a clean model"][column] = f"{mean(c['floor']['value'] for c in group):.2f}"
    return list(rows.values()) if used else []


def is_repaired(cell: Mapping[str, Any], residual: float, drop: float) -> bool:
    """Little of the attack left, little accuracy lost."""
    floor = cell["floor"]["high"] if cell["floor"] else 0.0
    left = cast(float, cell["asr_after"]["value"])
    return left <= max(residual, floor) and cell["cda_drop"]["value"] <= drop


def mean(values: Any) -> float:
    """Arithmetic mean; NaN of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else float("nan")
