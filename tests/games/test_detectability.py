"""The detectability game: which victims are scored."""

from __future__ import annotations

import pytest

from audit_cli.detectors import DETECTORS
from audit_cli.games.config import Bench
from audit_cli.games.detectability import detectability
from audit_cli.games.recipes import recipes
from audit_cli.games.zoo import Victim, Zoo
from audit_cli.types import Finding


@pytest.mark.parametrize(("planted", "scored"), [(True, ["clean", "badnets"]), (False, ["clean"])])
def test_a_bench_may_leave_out_those_whose_attack_did_not_take(
    bench: Bench, zoo: Zoo, monkeypatch: pytest.MonkeyPatch, planted: bool, scored: list[str]
) -> None:
    monkeypatch.setattr(Victim, "planted", planted)
    monkeypatch.setitem(
        DETECTORS, "calibrated", lambda: lambda *_: iter([Finding("BD001", 2.5, "", family="mask", target_class=1)])
    )
    wanted = recipes(bench, zoo.data)[:2]
    told = [cell.play() for cell in detectability(zoo, wanted, ["calibrated"], only_planted=True)]
    assert [facts["attack"] for facts in told] == ["clean", "badnets"]
    assert [facts["attack"] for facts in told if facts["scores"]] == scored
    every = [cell.play() for cell in detectability(zoo, wanted, ["calibrated"])]
    assert [facts["scores"] for facts in every] == 2 * [{"BD001/mask": {"1": [2.5, None]}}]
