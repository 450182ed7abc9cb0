"""Which clean models of other benches a bench's cells can be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from audit_cli.games.ablation import ablation_table
from audit_cli.games.against import Against, comparable
from audit_cli.games.by_class import BY_CLASS, with_by_class
from audit_cli.games.summary import Statistic, detection_table


def cell(victim: str, scores: Mapping[str, float], turn: int = 0) -> dict[str, Any]:
    """By rule and family the score of class 1; class 0 has 1. `clean…` are clean."""
    attack = "clean" if victim.startswith("clean") else "badnets"
    return {
        "victim": victim, "turn": turn, "attack": attack, "poison_count": 10 * (attack != "clean"), "target": 1,
        "planted": attack != "clean", "asr": {"value": 0.9}, "cpu_seconds": 1.0,
        "scores": {key: {"0": [1.0, None], "1": [score, None]} for key, score in scores.items()},
    }  # fmt: skip


def cells(names: str, families: Sequence[str], count: int, base: float = 1.0) -> list[dict[str, Any]]:
    return [cell(f"{names}{k}", {f"BD001/{f}": base + 0.01 * k for f in families}) for k in range(count)]


SIZES = cells("planted", ("mask", "additive", "wave"), 2, base=1.5)
FEWER = cells("clean", ("additive", "wave"), 20)


def test_clean_models_need_every_score_of_the_statistic() -> None:
    by_family = [len(comparable(SIZES, FEWER, Statistic("BD001", (f,)))) for f in ("mask", "additive", "wave", "warp")]
    assert by_family == [0, 20, 20, 0]
    assert comparable(SIZES, FEWER, Statistic("BD001")) == [], "the largest of three is not the largest of two"
    assert comparable(FEWER, SIZES, Statistic("BD001")) == [], "none of these is clean"
    twice = [*FEWER, *FEWER, cell("clean99", {"BD001/additive": 1.0, "BD001/wave": 1.0}, turn=1)]
    assert comparable(SIZES, twice, Statistic("BD001", ("wave",))) == FEWER


def test_class_by_class_the_families_count_that_both_have() -> None:
    """Masks count by themselves, and of further families on the clean models a bench says nothing."""
    more = cells("clean", ("additive", "wave", "profile_noise"), 20)
    for others in (FEWER, more):
        known = Against(SIZES, others)
        assert [c["p_value"] for c in known.scored] == [c["p_value"] for c in with_by_class(SIZES, FEWER)]
        assert [c["scores"][BY_CLASS] for c in known.reference(Statistic(BY_CLASS)) or ()] == [
            c["scores"][BY_CLASS] for c in with_by_class(FEWER)
        ]
    assert Against(more, FEWER).scored == more, "these have scores to which the others have nothing"
    assert Against(more, FEWER).reference(Statistic(BY_CLASS)) == []


def test_nothing_is_compared_with_the_cells_own_models_instead() -> None:
    own = [*SIZES, *cells("cleaner", ("mask", "additive", "wave"), 5)]
    assert Against(own).reference(Statistic("BD001")) is None
    assert detection_table(own, Statistic("BD001"))[0]["clean"] == 5
    row = detection_table(own, Statistic("BD001"), reference=Against(own, FEWER).reference(Statistic("BD001")))[0]
    assert (row["clean"], row["flagged"]) == (0, 1.0), "a threshold needs no clean models"
    assert "auc" not in row
    told = {row["statistic"]: row["clean"] for row in ablation_table(own, FEWER)}
    assert told == dict.fromkeys(
        (
            "BD001/additive", "BD001/wave", "BD001/additive+wave", BY_CLASS, f"{BY_CLASS}, additive alone",
            f"{BY_CLASS}, wave alone",
        ),
        20,
    )  # fmt: skip
