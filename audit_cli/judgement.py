"""The only place that turns measurements into a judgement: findings and a policy in, a verdict with its reasons out."""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from audit_cli.policy import Policy, Rule
from audit_cli.ranking import Rank, rank
from audit_cli.report.sanitise import clean

if TYPE_CHECKING:
    from audit_cli.types import Finding, JudgedFinding

PASS_REASON = "no backdoor found within scope"  # noqa: S105 - a verdict, not a password
EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


def judge(
    findings: Sequence[Finding], policy: Policy, manifest_digest: str, today: datetime.date
) -> tuple[str, int, tuple[str, ...], tuple[JudgedFinding, ...]]:
    """Verdict, exit code, reasons (most severe first) and the findings, each with what the policy says of it.

    Any fired, unwaived `fail` makes FAIL; else any fired, unwaived `inconclusive` makes INCONCLUSIVE; else PASS. No
    findings at all, a score that is not finite, and a rule the policy does not know are INCONCLUSIVE, never PASS.
    """
    judged = tuple(_judge_one(finding, policy, manifest_digest, today) for finding in findings)
    open_ = [item for item in judged if item.fired and item.waived_by is None]
    fails = [item for item in open_ if item.severity == "fail"]
    doubts = [item for item in open_ if item.severity == "inconclusive"]
    reasons = [_reason(item, policy) for item in sorted(fails, key=suspicion, reverse=True) + doubts]
    if fails:
        verdict = "FAIL"
    elif doubts or not findings:
        verdict = "INCONCLUSIVE"
        reasons = reasons or ["nothing was measured"]
    else:
        verdict = "PASS"
        reasons = [PASS_REASON]
    reasons += [
        clean(f"{item.finding.rule_id} is waived by {item.waived_by}", 400) for item in judged if item.waived_by
    ]
    reasons += [
        clean(f"the waiver of {waiver.rule} by {waiver.owner} expired on {waiver.expires} and does not count", 400)
        for waiver in policy.waivers
        if waiver.expires < today and any(waiver.covers(item.finding, manifest_digest) for item in open_)
    ]
    return verdict, EXIT_CODES[verdict], tuple(reasons), judged


def _judge_one(finding: Finding, policy: Policy, manifest_digest: str, today: datetime.date) -> JudgedFinding:
    from audit_cli.types import JudgedFinding  # imports torch, which reading a policy must not wait for

    rule = policy.rules.get(finding.rule_id)
    severity, threshold = (rule.severity, rule.limit(finding.family)) if rule else ("inconclusive", 0.0)
    fired = finding.score >= threshold
    if rule and rule.alpha is not None and finding.p_value is not None:
        fired = finding.p_value <= rule.alpha
    if rule is None or not math.isfinite(finding.score):
        severity, fired = "inconclusive", True
    waived_by = next(
        (
            clean(f"{waiver.owner} until {waiver.expires}: {waiver.reason}", 300)
            for waiver in policy.waivers
            if fired and waiver.expires >= today and waiver.covers(finding, manifest_digest)
        ),
        None,
    )
    return JudgedFinding(finding, severity, threshold, fired, finding.fingerprint(manifest_digest), waived_by)


def suspicion(item: JudgedFinding) -> Rank:
    """A key to sort by: larger is more suspicious."""
    finding = item.finding
    return rank(finding.score, item.threshold, finding.nonconformity, triggered=finding.asr_before is not None)


def _reason(item: JudgedFinding, policy: Policy) -> str:
    finding = item.finding
    if finding.rule_id not in policy.rules:
        why = "the policy does not know this rule"
    elif not math.isfinite(finding.score):
        why = "its score is not a finite number"
    else:
        why = f"score {finding.score:.3g}, " + _limit(finding, policy.rules[finding.rule_id], item.threshold)
    message = clean(finding.message, 400)
    if finding.target_class is not None and not message.startswith("class "):
        name = clean(finding.target_name or "", 40)
        named = f" ‘{name}’" if name and name != str(finding.target_class) else ""
        message = f"class {finding.target_class}{named}: {message}"
    return f"{message} ({clean(finding.rule_id, 20)}: {why})"


def _limit(finding: Finding, rule: Rule, threshold: float) -> str:
    """What the score was compared with."""
    if rule.alpha is None or finding.p_value is None:
        return f"threshold {threshold:.3g}"
    source, change = (finding.details.get(f"unusual_{kind}") for kind in ("source", "change"))
    told = f" from class ‘{clean(str(source), 40)}’" if source else f" under {clean(str(change), 60)}" if change else ""
    told += f" together with {clean(finding.beside, 40)}" if finding.beside else ""
    return f"p-value {finding.p_value:.2g} among clean models{told}, {rule.alpha:.2g} accepted"
