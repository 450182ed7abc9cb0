"""Which of several attempts is the best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from audit_cli.policy import Policy
from audit_cli.repairs.attempt import Attempt, unheard
from audit_cli.repairs.holdout import Cost
from audit_cli.types import Finding

POLICY = Policy.load("default")  # allows 2 points, and 5 % of the triggers


def attempt(drop: float, asr: float | None, verdict: str = "FAIL", objections: int = 0) -> Attempt:
    fields: dict[str, Any] = dict.fromkeys(Attempt.__dataclass_fields__)
    fields |= {
        "cost": Cost(1.0, 1.0 - drop, (drop, drop, drop), drop),
        "asr": asr,
        "verdict": verdict,
        "objections": ("",) * objections,
        "shown": (),
        "doubts": ("not known",) if verdict == "INCONCLUSIVE" else (),
    }
    return Attempt(**fields)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (attempt(0.02, 0.05, "PASS"), attempt(0.0, 0.0)),
        (attempt(0.02, 0.05, "INCONCLUSIVE"), attempt(0.0, 0.0)),
        (attempt(0.03, 0.0, objections=1), attempt(0.03, 0.0, objections=2)),
        (attempt(0.03, 0.04, objections=1), attempt(0.08, 0.01, objections=1)),  # both leave what is allowed
        (attempt(0.03, 0.01, objections=1), attempt(0.03, 0.04, objections=1)),
        (attempt(0.03, None, objections=1), attempt(0.03, 0.2, objections=1)),
    ],
)
def test_passing_then_few_objections_then_little_over_the_limits(better: Attempt, worse: Attempt) -> None:
    assert better.rank(POLICY) < worse.rank(POLICY)


@pytest.mark.parametrize(
    ("verdict", "objections", "told"),
    [
        ("PASS", 0, []),
        ("FAIL", 2, ["", ""]),
        ("FAIL", 0, ["the audit of it ended with FAIL"]),
        ("INCONCLUSIVE", 0, ["not known"]),
    ],
)
def test_an_attempt_that_does_not_pass_says_why(verdict: str, objections: int, told: list[str]) -> None:
    found = replace(attempt(0.01, None, verdict, objections), rung="unlearning", findings=())
    figures = {"cda_drop": 0.01, "asr": None, "asr_inside": None, "asr_in_fog": None, "p_value": None, "score": None}
    assert found.told == {"method": "unlearning", **figures, "objections": told}


def test_the_verdict_says_which_class_was_not_listened_to() -> None:
    frog, *deer = (
        Finding("BD001", 1.2, "", family=family, target_class=target, target_name=name, p_value=0.02)
        for family, target, name in (("wave", 6, "frog"), ("features", 4, "deer"), ("profile", 4, "deer"))
    )
    (line,) = unheard([frog, *deer])
    assert line.startswith("Class 'frog' was convicted, too, but by wave alone")
    assert unheard(deer) == []
