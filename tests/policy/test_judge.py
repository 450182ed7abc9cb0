from __future__ import annotations

import datetime
from dataclasses import replace

import pytest

from audit_cli.judgement import judge
from audit_cli.policy import Policy, Rule, Waiver
from audit_cli.types import Finding

MANIFEST = "a" * 64
TODAY = datetime.date(2026, 1, 31)
DAY = datetime.timedelta(days=1)

POLICY = replace(
    Policy.load("default"),
    rules={
        "BD001": Rule("fail", 2.0, {"mask": 3.0}),
        "BD101": Rule("inconclusive", 0.5),
        "BD110": Rule("note", 1.0),
    },
)


def finding(rule: str = "BD001", score: float = 1.0, family: str = "additive", target: int | None = 3) -> Finding:
    return Finding(rule, score, f"{rule} message", family=family, target_class=target)


def waiver(of: Finding, expires: datetime.date = TODAY, **changes: object) -> Waiver:
    made = Waiver(MANIFEST, of.rule_id, of.fingerprint(MANIFEST), "known", "someone", expires)
    return replace(made, **changes)  # type: ignore[arg-type]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [
        ([], "INCONCLUSIVE"),
        ([finding(score=1.9)], "PASS"),
        ([finding(score=2.0)], "FAIL"),  # at the threshold counts
        ([finding(score=2.5, family="mask")], "PASS"),  # the family's own threshold
        ([finding(score=3.0, family="mask")], "FAIL"),
        ([finding(score=2.5, family="new")], "FAIL"),  # else the rule's
        ([finding("BD101", 0.4)], "PASS"),
        ([finding("BD101", 0.5)], "INCONCLUSIVE"),
        ([finding("BD110", 1.0)], "PASS"),
        ([finding("BD101", 0.9), finding(score=9.0)], "FAIL"),  # a found backdoor stays found
        ([finding("BD777", 0.0)], "INCONCLUSIVE"),  # unknown to the policy
        ([finding("BD777", -5.0)], "INCONCLUSIVE"),
        ([finding(score=NAN)], "INCONCLUSIVE"),
        ([finding(score=INF)], "INCONCLUSIVE"),
        ([finding(score=-INF)], "INCONCLUSIVE"),
        ([finding("BD110", NAN)], "INCONCLUSIVE"),
        ([finding(score=NAN), finding(score=9.0, target=4)], "FAIL"),
    ],
)
def test_table(findings: list[Finding], verdict: str) -> None:
    result, code, reasons, judged = judge(findings, POLICY, MANIFEST, TODAY)
    assert result == verdict
    assert code == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}[verdict]
    assert reasons
    assert (reasons == ("no backdoor found within scope",)) == (verdict == "PASS")
    assert [item.finding for item in judged] == findings


def test_reasons_are_readable_and_most_severe_first() -> None:
    findings = [finding("BD101", 0.75, target=None), finding(score=4.0), finding(score=12.0, family="mask", target=7)]
    *_, reasons, _ = judge(findings, POLICY, MANIFEST, TODAY)
    assert reasons == (
        "class 7: BD001 message (BD001: score 12, threshold 3)",
        "class 3: BD001 message (BD001: score 4, threshold 2)",
        "BD101 message (BD101: score 0.75, threshold 0.5)",
    )


@pytest.mark.parametrize(
    ("name", "message", "begin"),
    [
        ("cat", "small", "class 3 ‘cat’: small ("),
        ("3", "small", "class 3: small ("),
        (None, "class 3 is odd", "class 3 is odd ("),
    ],
)
def test_reasons_name_the_class_once(name: str | None, message: str, begin: str) -> None:
    *_, reasons, _ = judge([Finding("BD001", 9.0, message, target_class=3, target_name=name)], POLICY, MANIFEST, TODAY)
    assert reasons[0].startswith(begin)


def test_reasons_are_sanitised() -> None:
    hostile = Finding("BD001", 5.0, "\x1b[31m::error::\nx")
    *_, reasons, _ = judge([hostile], POLICY, MANIFEST, TODAY)
    assert "\x1b" not in reasons[0]
    assert "\n" not in reasons[0]
    assert not reasons[0].startswith("::")


def test_judging_does_not_depend_on_the_order_of_findings() -> None:
    findings = [finding("BD101", 0.9), finding(score=9.0), finding(score=NAN, target=5)]
    assert judge(findings, POLICY, MANIFEST, TODAY)[0] == judge(findings[::-1], POLICY, MANIFEST, TODAY)[0]


class TestWaivers:
    bad = finding(score=9.0)

    def judged(self, *waivers: Waiver, findings: list[Finding] | None = None) -> tuple[str, tuple[str, ...]]:
        verdict, _, reasons, _ = judge(findings or [self.bad], replace(POLICY, waivers=waivers), MANIFEST, TODAY)
        return verdict, reasons

    @pytest.mark.parametrize("expires", [TODAY, TODAY + DAY])
    def test_covers_its_finding_to_the_last_day(self, expires: datetime.date) -> None:
        verdict, reasons = self.judged(waiver(self.bad, expires))
        assert verdict == "PASS"
        assert reasons[0] == "no backdoor found within scope"
        assert reasons[1] == f"BD001 is waived by someone until {expires}: known"

    def test_expired_does_not_count_and_is_mentioned(self) -> None:
        verdict, reasons = self.judged(waiver(self.bad, TODAY - DAY))
        assert verdict == "FAIL"
        assert reasons[-1] == "the waiver of BD001 by someone expired on 2026-01-30 and does not count"

    @pytest.mark.parametrize(
        "changes",
        [{"model": "b" * 64}, {"rule": "BD101"}, {"fingerprint": "0" * 16}, {"target_class": 4}],
    )
    def test_is_bound_to_model_rule_fingerprint_and_class(self, changes: dict[str, object]) -> None:
        assert self.judged(waiver(self.bad, **changes))[0] == "FAIL"  # type: ignore[arg-type]

    def test_covers_one_finding_only(self) -> None:
        assert self.judged(waiver(self.bad), findings=[self.bad, finding(score=9.0, target=4)])[0] == "FAIL"
        assert self.judged(waiver(self.bad), findings=[self.bad, finding(score=9.0, family="mask")])[0] == "FAIL"

    def test_marks_the_finding(self) -> None:
        *_, (item,) = judge([self.bad], replace(POLICY, waivers=(waiver(self.bad),)), MANIFEST, TODAY)
        assert item.fired
        assert item.waived_by == f"someone until {TODAY}: known"
        assert item.fingerprint == self.bad.fingerprint(MANIFEST)

    def test_what_did_not_fire_is_not_waived(self) -> None:
        quiet = finding(score=1.0)
        *_, reasons, (item,) = judge([quiet], replace(POLICY, waivers=(waiver(quiet),)), MANIFEST, TODAY)
        assert item.waived_by is None
        assert reasons == ("no backdoor found within scope",)
