"""The tables: areas, rates and intervals, re-derived by hand."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch

from audit_cli.games.summary import (
    Statistic,
    attacks_table,
    bootstrap,
    detection_table,
    repair_table,
    side_by_side,
    statistics,
    tpr_at,
)
from audit_cli.games.tables import as_json, markdown
from audit_cli.metrics import auroc
from audit_cli.policy import Policy


def rate(value: float, half: float = 0.02) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half, "n": 100}


def scored(attack: str, score: float, *, other: float = 0.5, planted: bool = True, target: int = 1) -> dict[str, Any]:
    """A detectability cell: family a says `score` of class 1, family b `other` of class 0."""
    return {
        "attack": attack,
        "poison_count": 0 if attack == "clean" else 10,
        "planted": planted and attack != "clean",
        "target": None if attack == "clean" else target,
        "asr": None if attack == "clean" else rate(0.9),
        "scores": {"X/a": {"0": [0.1, 1.0], "1": [score, 2.0]}, "X/b": {"0": [other, 1.0]}, "Y": {"None": [9.0, None]}},
    }


CELLS = [scored("clean", s) for s in (0.6, 0.7, 0.8, 0.9)] + [scored("badnets", s) for s in (0.75, 1.5, 2.0)]


def test_the_model_score_is_the_largest_and_names_its_class() -> None:
    cell = scored("badnets", 0.3, other=0.8)
    assert Statistic("X").of(cell) == 0.8
    assert Statistic("X").named(cell) == 0
    assert Statistic("X", ("a",)).of(cell) == 0.3
    assert Statistic("X", ("a",)).named(cell) == 1
    assert Statistic("Y").of(cell) == 9.0
    assert Statistic("Y").named(cell) is None
    assert Statistic("Z").of(cell) is None
    assert [s.name for s in statistics([cell])] == ["X", "X/a", "X/b", "Y"]


def test_families_are_compared_in_units_of_their_thresholds() -> None:
    scores = {"BD001/mask": {"0": [1.2, 1.0]}, "BD001/warp": {"1": [1.4, 1.0]}}
    assert Statistic("BD001").named({"scores": scores}) == 0, "1.2 of 1.5 is more than 1.4 of 3"
    assert Statistic("BD001").of({"scores": scores}) == pytest.approx(0.8)


def test_the_detection_table() -> None:
    row, _ = detection_table([*CELLS, scored("badnets", 0.0, planted=False)], Statistic("X"))
    pairs = list(itertools.product((0.75, 1.5, 2.0), (0.6, 0.7, 0.8, 0.9)))
    assert row["auc"] == pytest.approx(sum(p > n for p, n in pairs) / len(pairs))
    assert (row["clean"], row["planted"], row["of"]) == (4, 3, 4)
    assert row["tpr@0.01"] == pytest.approx(2 / 3)
    assert row["low"] < row["auc"] < row["high"] <= 1
    assert row["target named"] == 1.0


def test_the_named_target_must_be_the_true_one() -> None:
    cells = [c | {"target": 0} if c["attack"] == "badnets" else c for c in CELLS]
    assert detection_table(cells, Statistic("X"))[0]["target named"] == 0.0


def test_a_row_without_planted_victims_says_so_and_claims_nothing() -> None:
    row, _ = detection_table([CELLS[0], scored("badnets", 2.0, planted=False)], Statistic("X"))
    assert (row["planted"], row["of"]) == (0, 1)
    assert "auc" not in row


def test_tpr_at_a_rate_allows_exactly_that_many_alarms() -> None:
    negatives, positives = torch.arange(100).double(), torch.tensor([93.5, 95.5, 98.5, 99.5]).double()
    assert tpr_at(negatives, positives, 0.05) == 0.75  # 95 … 99 may pass, 94 may not
    assert tpr_at(negatives, positives, 0.01) == 0.5  # 99 may pass
    assert tpr_at(negatives[:10], positives, 0.05) == 1.0  # none may pass


def test_the_bootstrap_interval_narrows_with_more_models() -> None:
    g = torch.Generator().manual_seed(0)
    widths = []
    for n in (10, 200):
        low, high = bootstrap(torch.randn(n, generator=g), torch.randn(n, generator=g) + 1, auroc)
        assert low < 0.76 < high  # P(N(1, 1) > N(0, 1)) = 0.76
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_models_over_the_threshold_are_flagged() -> None:
    attacked, clean = detection_table(CELLS, Statistic("X"))
    assert (clean["attack"], clean["clean"], clean["flagged"]) == ("clean", 4, 0.0)
    assert clean["flagged to"] > 0.3, "four clean models say little"
    assert attacked["flagged"] == pytest.approx(2 / 3)


def repaired_cell(after: float, drop: float, floor: float = 0.0) -> dict[str, Any]:
    return {
        "attack": "badnets",
        "poison_count": 5,
        "repair": "r",
        "planted": True,
        "cda": rate(0.8),
        "asr": rate(0.9),
        "floor": rate(floor, 0.01),
        "asr_after": rate(after),
        "cda_drop": {"value": drop, "low": 0, "high": 0},
        "cpu_seconds": 3.0,
    }


@pytest.mark.parametrize(
    ("after", "drop", "floor", "repaired"),
    [(0.05, 0.02, 0.0, 1), (0.051, 0.0, 0.0, 0), (0.0, 0.021, 0.0, 0), (0.2, 0.0, 0.2, 1), (0.22, 0.0, 0.2, 0)],
)
def test_repaired_is_little_left_and_little_lost(after: float, drop: float, floor: float, repaired: int) -> None:
    (row,) = repair_table([repaired_cell(after, drop, floor)])
    assert row["repaired"] == repaired
    assert (row["asr after"], row["drop"], row["victims"]) == (after, drop, 1)


def test_repairs_stand_side_by_side() -> None:
    cells = [repaired_cell(0.1, 0.01, 0.03), repaired_cell(0.3, 0.02, 0.05)]
    cells += [repaired_cell(0.4, 0.0, 0.04) | {"repair": "s", "attack": "blend"}]
    cells += [repaired_cell(0.9, 0.5) | {"planted": False}, repaired_cell(0.9, 0.5) | {"attack": "clean"}]
    before, r, s, clean = side_by_side(cells)
    assert before == {"repair": "none", "badnets, 5": "0.90", "blend, 5": "0.90"}
    assert r == {"repair": "r", "badnets, 5": "0.20 (1.5)"}
    assert s == {"repair": "s", "blend, 5": "0.40 (0.0)"}
    assert clean == {"repair": "a clean model", "badnets, 5": "0.04", "blend, 5": "0.04"}
    assert side_by_side(cells[3:]) == []


def test_victims_whose_attack_did_not_take_are_counted_apart() -> None:
    def victim(asr: float, planted: bool) -> dict[str, Any]:
        return {
            "attack": "badnets", "poison_count": 5, "loss": None, "arch": "r", "planted": planted, "cda": rate(0.8),
            "asr": rate(asr), "floor": rate(0.01),
        }  # fmt: skip

    (row,) = attacks_table([victim(0.9, True), victim(0.1, False)])
    assert (row["victims"], row["planted"], row["asr"]) == (2, 1, pytest.approx(0.5))
    assert (row["from"], row["to"]) == (0.1, 0.9)


def test_rows_are_in_order_and_networks_apart_when_asked() -> None:
    def victim(attack: str, count: int, arch: str, loss: str | None = None) -> dict[str, Any]:
        facts = {"attack": attack, "poison_count": count, "loss": loss, "arch": arch, "planted": True}
        return facts | {"cda": rate(0.8), "asr": rate(0.9), "floor": rate(0.01)}

    victims = [
        victim("blend", 5, "a"),
        victim("badnets", 50, "a", "contrastive"),
        victim("badnets", 50, "b"),
        victim("badnets", 5, "a"),
        victim("clean", 0, "a"),
        victim("badnets", 5, "b"),
    ]
    rows = [(row["attack"], row["m"], row["loss"], row["victims"]) for row in attacks_table(victims)]
    assert rows == [
        ("clean", "", "", 1), ("badnets", 5, "", 2), ("badnets", 50, "", 1), ("badnets", 50, "contrastive", 1),
        ("blend", 5, "", 1),
    ]  # fmt: skip
    apart = [row["network"] for row in attacks_table(victims, by_network=True) if row["m"] == 5]
    assert apart == ["a", "b", "a"]


def test_markdown() -> None:
    text = markdown([{"a": 1, "b": 0.12345}, {"a": "x", "c": float("nan"), "b": 123.456}])
    assert text.splitlines() == [
        "| a | b     | c |",
        "| - | ----- | - |",
        "| 1 | 0.123 |   |",
        "| x | 123.5 |   |",
    ]
    assert markdown([]) == ""


def test_json_has_null_where_there_is_no_number() -> None:
    rows = [{"a": float("nan"), "b": 0.5}, {"a": float("inf"), "b": None, "c": "x"}]
    assert json.loads(as_json("S", {"t": rows}), parse_constant=pytest.fail) == {
        "tier": "S",
        "t": [{"a": None, "b": 0.5}, {"a": None, "b": None, "c": "x"}],
    }


def test_the_whole_rule_leaves_out_what_has_no_threshold() -> None:
    """A scan without calibration drops how readily a class is answered, so no largest score is made of it either."""
    cell = {"scores": {"BD001/mask": {"3": [0.9, 1.0]}, "BD001/profile_wave": {"5": [9.0, None]}}}
    whole = Statistic("BD001")
    assert whole.of(cell) == pytest.approx(0.9 / Policy.load("default").rules["BD001"].limit("mask"))
    assert whole.named(cell) == 3
    assert Statistic("BD001", ("profile_wave",)).named(cell) == 5
