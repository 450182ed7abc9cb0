"""What families are worth and cost, and whether repeated runs agree, re-derived by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from audit_cli.games.ablation import ablation_table, compared, cost, stability_table
from audit_cli.games.summary import Statistic


def cell(attack: str, a: float, b: float, c: float, *, victim: str = "", turn: int = 0) -> dict[str, Any]:
    return {
        "attack": attack,
        "victim": victim or f"{attack}-{a}-{b}-{c}",
        "turn": turn,
        "planted": attack != "clean",
        "target": 1,
        "scores": {"X/a": {"1": [a, 1.0]}, "X/b": {"0": [b, 1.0]}, "X/c": {"2": [c, 1.0]}},
        "costs": {"X/a": 3.0, "X/b": 5.0, "X/c": 7.0},
        "cpu_seconds": 20.0,
    }


CELLS = [
    *(cell("clean", 0.5, 0.4, s) for s in (0.2, 0.6, 1.2)),  # c is noisy
    cell("badnets", 2.0, 0.4, 0.3),  # a sees it
    cell("blend", 0.5, 1.5, 0.3),  # b sees it
]


def test_every_family_alone_together_and_left_out() -> None:
    rows = {row["statistic"]: row for row in ablation_table(CELLS)}
    assert list(rows) == ["X", "X/a", "X/b", "X/c", "X/b+c", "X/a+c", "X/a+b"]
    assert rows["X"]["auc"] == 1.0, "2.0 and 1.5 are over 1.2"
    assert rows["X/a"]["auc"] == pytest.approx((3 + 3 * 0.5) / 6)
    assert rows["X/a+b"]["false alarms"] == 0.0 < rows["X"]["false alarms"]
    assert rows["X/b+c"]["auc"] == pytest.approx((0.5 + 3) / 6), "badnets is left at 0.4, a tie with one clean model"
    assert (rows["X/a"]["clean"], rows["X/a"]["planted"]) == (3, 2)


def test_a_statistic_costs_what_its_families_cost() -> None:
    rows = {row["statistic"]: row["cpu s"] for row in ablation_table(CELLS)}
    assert (rows["X"], rows["X/a"], rows["X/a+c"]) == (20.0, 3.0, 10.0)
    assert cost({"cpu_seconds": 9.0}, Statistic("X", ("a",))) == 9.0, "an older cell tells the whole only"
    assert math.isnan(cost({"cpu_seconds": 9.0, "costs": {"X/a": 3.0}}, Statistic("X", ("b",)))), "not measured there"
    assert cost({"cpu_seconds": 9.0, "costs": {"X/a": 3.0}}, Statistic("X", ("a", "b"))) == 3.0


def test_what_a_calibration_compares_and_what_it_leaves_out() -> None:
    """Masks are added to the others by themselves, and none of the others is judged without its fellows but them."""
    families = ("mask", "additive", "wave", "profile")
    scores = {f"BD001/{family}": {"0": [1.0, 1.0]} for family in families}
    assert compared([{**CELLS[0], "scores": scores}]) == {
        "BD001 by class": ("additive", "wave", "profile"),
        **{f"BD001 by class, {family} alone": (family,) for family in families},
        "BD001 by class without additive": ("wave", "profile"),
        "BD001 by class without wave": ("additive", "profile"),
        "BD001 by class without profile": ("additive", "wave"),
        "BD001 by class with mask": ("additive", "wave", "profile", "mask"),
    }
    assert compared(CELLS) == {}, "no score that a calibration knows"


def test_stability_counts_models_whose_runs_agree() -> None:
    runs = [("one", (1.4, 1.2, 2.0)), ("two", (0.9, 1.1, 0.8)), ("three", (0.5, 0.6, 0.7))]
    cells = [cell("badnets", s, 0.1, 0.1, victim=v, turn=t) for v, scores in runs for t, s in enumerate(scores)]
    clean = [cell("clean", s, 0.1, 0.1, victim="c", turn=t) for t, s in enumerate((0.5, 0.4))]
    of_clean, of_planted = stability_table([*cells, *clean, cell("badnets", 9.0, 0, 0, victim="once")], Statistic("X"))
    assert (of_clean["models"], of_clean["of them"], of_clean["runs"], of_clean["same verdict"]) == ("clean", 1, 2, 1.0)
    assert (of_planted["of them"], of_planted["runs"]) == (3, 3)
    assert of_planted["same verdict"] == pytest.approx(2 / 3)
    assert of_planted["flagged runs"] == pytest.approx(4 / 9)
    assert of_planted["spread"] == pytest.approx((0.8 + 0.3 + 0.2) / 3)
    assert of_planted["same class"] == 1.0


def test_a_class_that_changes_is_seen() -> None:
    runs = [cell("badnets", 2.0, 0.1, 0.1, victim="v"), cell("badnets", 0.1, 2.0, 0.1, victim="v", turn=1)]
    (row,) = stability_table(runs, Statistic("X"))
    assert (row["same verdict"], row["same class"]) == (1.0, 0.0)


def test_runs_without_the_rule_are_no_runs() -> None:
    runs = [cell("badnets", 2.0, 0.1, 0.1, victim="v", turn=turn) for turn in (0, 1)]
    assert stability_table(runs, Statistic("Y")) == []
