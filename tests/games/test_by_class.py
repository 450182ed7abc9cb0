"""Scores in deviations from the clean models' own, class by class."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pytest

from audit_cli.calibration import Calibration, Clean, Domain
from audit_cli.conformal import SLACK
from audit_cli.games.ablation import ablation_table, stability_table
from audit_cli.games.by_class import BY_CLASS, with_by_class
from audit_cli.games.summary import Statistic, detection_table
from audit_cli.games.tables import markdown


def cell(attack: str, first: float, second: float, victim: str = "", turn: int = 0) -> dict[str, Any]:
    return {
        "victim": victim or f"{attack}-{first}-{second}",
        "turn": turn,
        "attack": attack,
        "poison_count": 0 if attack == "clean" else 10,
        "planted": attack != "clean",
        "target": None if attack == "clean" else 1,
        "asr": None if attack == "clean" else {"value": 0.9},
        "cpu_seconds": 1.0,
        "scores": {"BD001/additive": {"0": [first, 1.0], "1": [second, 1.0]}, "BD002/mask": {"0": [9.0, 1.0]}},
    }


CLEAN = [cell("clean", 1.2 + 0.02 * k, 0.6 + 0.01 * k) for k in range(5)]


def test_a_class_is_compared_with_itself_on_clean_models() -> None:
    """1.1 is small for class 0 and very large for class 1."""
    cells = with_by_class([*CLEAN, cell("badnets", 1.2, 1.1)])
    row = cells[-1]["scores"][BY_CLASS]
    logs = {c: [math.log(m["scores"]["BD001/additive"][c][0]) for m in CLEAN] for c in "01"}

    def deviations(own: Sequence[float], left: int | None = None) -> list[float]:
        """Of two classes' logs from the clean models', one of which may be left out; the variance is pulled towards
        both classes' own."""
        others = [[v for k, v in enumerate(logs[c]) if k != left] for c in "01"]
        n, family = len(others[0]), statistics.fmean(statistics.pvariance(values) for values in others)
        spread = [((n * statistics.pvariance(v) + 10 * family) / (n + 10)) ** 0.5 + SLACK for v in others]
        return [(x - statistics.fmean(v)) / s for x, v, s in zip(own, others, spread, strict=True)]

    models = [deviations((logs["0"][k], logs["1"][k]), left=k) for k in range(5)]
    every = [z for model in models for z in model]
    scaled = [(max(model) - statistics.fmean(every)) / (statistics.stdev(every) + SLACK) for model in models]
    usual = statistics.fmean(t * t for t in scaled) ** 0.5 + SLACK
    for c, z in zip("01", deviations((math.log(1.2), math.log(1.1))), strict=True):
        expected = (z - statistics.fmean(every)) / (statistics.stdev(every) + SLACK) / usual
        assert row[c][0] == pytest.approx(expected), "on the scale of the clean models' deviations"
    assert row["0"][0] < 0 < row["1"][0]
    assert detection_table(cells, Statistic("BD001"))[0]["auc"] == pytest.approx(0.1)
    table = detection_table(cells, Statistic(BY_CLASS))
    assert (table[0]["auc"], table[0]["target named"]) == (1.0, 1.0)
    assert cells[-1]["p_value"] == pytest.approx(1 / 6), "the most unusual of six"
    assert table[0]["flagged"] == 0.0, "five clean models cannot show that one in twenty is so unusual"


@pytest.mark.parametrize(("easiness", "named"), [(0.93, 0), (1.3, 1)])
def test_the_class_that_is_the_oddest_in_its_families_together_is_named(easiness: float, named: int) -> None:
    """A lone family that finds another class odd names it only where it is the odder."""

    def with_features(known: dict[str, Any], first: float, second: float) -> dict[str, Any]:
        scores = {**known["scores"], "BD001/features": {"0": [first, 1.0], "1": [second, 1.0]}}
        return {**known, "scores": scores}

    reference = [
        with_features(cell("clean", 1.2 + 0.01 * k, 0.6 + 0.005 * k), 0.9 + 0.001 * k, 0.9 + 0.001 * k)
        for k in range(20)
    ]
    (told,) = with_by_class([with_features(cell("badnets", 1.8, 0.65), 0.93, easiness)], reference)
    assert told["p_value"] <= 0.05
    assert Statistic(BY_CLASS).named(told) == told["named"] == named


def test_some_families_alone() -> None:
    """What the others say changes nothing, not even the scale."""
    beside = [{**c, "scores": {**c["scores"], "BD001/wave": {"0": [2.0 + k, 1.0]}}} for k, c in enumerate(CLEAN)]
    usual = with_by_class(CLEAN)[2]["scores"][BY_CLASS]
    assert with_by_class(beside, families=["additive"])[2]["scores"][BY_CLASS] == usual
    assert with_by_class(beside)[2]["scores"][BY_CLASS] != usual


def test_masks_and_warps_count_only_where_they_are_asked_for() -> None:
    for family in ("mask", "warp"):
        beside = [
            {**c, "scores": {**c["scores"], f"BD001/{family}": {"0": [2.0 + k, 1.0]}}} for k, c in enumerate(CLEAN)
        ]
        usual = with_by_class(CLEAN)[2]["scores"][BY_CLASS]
        assert with_by_class(beside)[2]["scores"][BY_CLASS] == usual
        assert with_by_class(beside, families=["additive", family])[2]["scores"][BY_CLASS] != usual


def test_a_clean_model_is_not_compared_with_itself() -> None:
    odd = [*CLEAN, cell("clean", 5.0, 0.6)]
    values = [c["scores"][BY_CLASS]["0"][0] for c in with_by_class(odd)]
    assert values[-1] > 10, "with itself among the others it would be no more than sqrt(5)"


def test_another_benchs_clean_models_can_be_the_reference() -> None:
    """Twenty of them give p-values down to 1/21, which the default policy does not accept."""
    reference = [cell("clean", 1.2 + 0.01 * k, 0.6 + 0.005 * k) for k in range(20)]
    own = [cell("clean", 1.25, 0.61), cell("clean", 1.25, 1.1), cell("badnets", 1.2, 1.1)]
    cells = with_by_class(own, reference)
    assert [c["p_value"] for c in cells[1:]] == [pytest.approx(1 / 21)] * 2
    assert cells[0]["p_value"] > 0.3
    attack, clean = detection_table(cells, Statistic(BY_CLASS), reference=with_by_class(reference))
    assert (attack["clean"], attack["auc"], attack["flagged"]) == (20, 1.0, 1.0)
    assert (clean["clean"], clean["flagged"]) == (2, 0.5)


def test_a_model_that_is_given_twice_counts_once() -> None:
    reference = [cell("clean", 1.2 + 0.01 * k, 0.6 + 0.005 * k) for k in range(10)]
    suspect = cell("badnets", 1.2, 1.1)
    once, twice = (with_by_class([suspect], known) for known in (reference, [*reference, *reference]))
    assert once == twice
    assert once[0]["p_value"] == pytest.approx(1 / 11)


def test_clean_models_compared_with_one_another_tell_no_false_alarms() -> None:
    """Of twenty exactly one has a p-value of 5 %, whatever they are like; by score they may tell."""
    bag = [cell("clean", 1.2 + 0.01 * k, 0.6 + 0.005 * k) for k in range(20)]
    empty = {"flagged": None, "flagged from": None, "flagged to": None}
    cells = with_by_class([*bag, cell("badnets", 1.2, 1.1)])
    assert sorted(c["p_value"] for c in cells[:20]) == pytest.approx([k / 20 for k in range(1, 21)])
    attack, clean = detection_table(cells, Statistic(BY_CLASS))
    assert attack["flagged"] == 1.0
    assert clean == {"attack": "clean", "clean": 20, **empty}
    assert detection_table(cells, Statistic("BD001"))[1]["flagged"] == 0.0
    assert markdown([clean]).endswith("| clean  | 20    | –       | –            | –          |")
    among = with_by_class([bag[0], cell("clean", 1.25, 1.1)], bag)
    assert [c["among"] for c in among] == [True, False]
    assert [(r["clean"], r["flagged"]) for r in detection_table(among, Statistic(BY_CLASS))] == [(1, 1.0)]
    planted = [cell("badnets", 1.2, 1.1 + 0.1 * k, f"p{k}") for k in range(2)]
    rows = {row["statistic"]: row["false alarms"] for row in ablation_table([*bag, *planted])}
    assert rows == {"BD001": 0.0, "BD002": 1.0, BY_CLASS: None}


def test_the_p_value_is_the_calibrations() -> None:
    """The same numbers, asked for as a scan asks for them."""
    reference = [cell("clean", 1.2 + 0.01 * k, 0.6 + 0.02 * (k % 7)) for k in range(20)]
    suspect = cell("badnets", 1.3, 0.8)
    pairs = [(c["scores"]["BD001/additive"]["0"][0], c["scores"]["BD001/additive"]["1"][0]) for c in reference]
    models = tuple(Clean("0" * 64, "a", 0.9, {"additive": pair}) for pair in pairs)
    calibration = Calibration("t", Domain("a", 8, 8, ("a", "b")), "0" * 16, "f" * 64, 100, models)
    p = calibration.p_values({("additive", "a"): 1.3, ("additive", "b"): 0.8})
    assert with_by_class([suspect], reference)[0]["p_value"] == pytest.approx(min(p.values()))


def test_runs_under_other_seeds_are_not_compared_with_their_own_model() -> None:
    """Twenty clean models, the last of them twice: it is in the bag once, and never when it is asked about itself."""
    models = [cell("clean", 1.2 + 0.01 * k, 0.6 + 0.005 * k, f"v{k}") for k in range(20)]
    planted = [cell("badnets", 1.2, 1.1, "p"), cell("badnets", 1.2, 1.3, "p", turn=1)]
    cells = with_by_class([*models, cell("clean", 1.4, 0.7, "v19", turn=1), *planted])
    assert cells[0]["p_value"] == with_by_class(models)[0]["p_value"], "a repeat changes nothing for the others"
    assert cells[20]["p_value"] == pytest.approx(1 / 20), "compared with nineteen"
    clean, poisoned = stability_table(cells, Statistic(BY_CLASS))
    assert (clean["of them"], clean["runs"]) == (1, 2)
    assert (poisoned["same verdict"], poisoned["flagged runs"], poisoned["same class"]) == (1.0, 1.0, 1.0)


def test_too_few_clean_models_change_nothing() -> None:
    few = [*CLEAN[:2], cell("badnets", 1.2, 1.1)]
    assert with_by_class(few) == few


def test_a_cell_is_compared_in_the_families_it_was_scored_in() -> None:
    """As if the others were on no model."""
    clean = [cell("clean", 1.2 + 0.01 * k, 0.6 + 0.02 * (k % 7)) for k in range(20)]
    more = [{**c, "scores": {**c["scores"], "BD001/wave": {"0": [2.0 + k, 1.0]}}} for k, c in enumerate(clean)]
    earlier, empty = cell("badnets", 1.2, 1.1), {**cell("badnets", 1.0, 1.0), "scores": {}}
    later = {
        **cell("badnets", 1.3, 1.1),
        "scores": {**cell("badnets", 1.3, 1.1)["scores"], "BD001/wave": {"0": [90.0, 1.0]}},
    }
    told = with_by_class([earlier, empty, later], more)
    assert told[0] == with_by_class([earlier], clean)[0]
    assert (told[1]["p_value"], told[1]["scores"][BY_CLASS]) == (1.0, {})
    assert told[2] == with_by_class([later], more)[0] != with_by_class([later], clean)[0]
