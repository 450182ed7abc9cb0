"""Policy: the only place that turns measurements into a judgement.

A policy is a TOML file: a severity and a threshold per rule, minima for the trusted data, budgets, and waivers bound to
one model. It inherits from a bundled policy, so a file states only what differs. Every rule has a page in `rules/`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from audit_cli.errors import PolicyError
from audit_cli.report.sanitise import clean
from audit_cli.resources import bundled, violations

if TYPE_CHECKING:
    from audit_cli.types import Finding, JudgedFinding

BUNDLED = ("default", "strict")
PASS_REASON = "no backdoor found within scope"  # noqa: S105 - a verdict, not a password
EXIT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


@dataclass(frozen=True)
class Rule:
    """What one rule's score means: it fires at `threshold`, or at its trigger family's own where there is one; where
    clean models of the suspect's kind have been scored, when its p-value is at most `alpha`."""

    severity: str  # "fail" | "inconclusive" | "note"
    threshold: float
    families: Mapping[str, float] = field(default_factory=dict)
    alpha: float | None = None  # accepted false-alarm rate: decides instead where a finding has a p-value

    def limit(self, family: str = "") -> float:
        return self.families.get(family, self.threshold)


@dataclass(frozen=True)
class Waiver:
    """Somebody's signed decision to accept one finding on one model until a day."""

    model: str  # manifest digest
    rule: str
    fingerprint: str
    reason: str
    owner: str
    expires: datetime.date  # the last day it counts
    target_class: int | None = None

    def covers(self, finding: Finding, manifest_digest: str) -> bool:
        return (
            self.model == manifest_digest
            and self.rule == finding.rule_id
            and self.fingerprint == finding.fingerprint(manifest_digest)
            and self.target_class in (None, finding.target_class)
        )


@dataclass(frozen=True)
class Policy:
    """One policy in force. sha256: over the effective policy as canonical JSON, so that comments and layout do not
    change it and an inherited value does. path: the file it came from, None when bundled. discovered: found in the
    current directory rather than named by the user."""

    name: str
    sha256: str
    rules: Mapping[str, Rule]
    min_images: int
    min_per_class: int
    expires_days: int
    max_drop: float
    max_asr: float
    timeout: float | None = None  # seconds
    max_memory: int | None = None  # bytes
    weights: str | None = None  # the file to audit where a folder has several formats
    settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # repair -> its hyper-parameters
    calibrations: tuple[Path, ...] = ()  # files of the user's own, looked at before the bundled ones
    waivers: tuple[Waiver, ...] = ()
    path: Path | None = None
    discovered: bool = False

    @classmethod
    def load(cls, source: str | Path) -> Policy:
        """`default`, `strict`, a TOML file, or a pyproject.toml with a [tool.audit-cli] table. Raises PolicyError."""
        if isinstance(source, str) and source in BUNDLED:
            return _build(_bundled_table(source), source, path=None)
        path = Path(source)
        if path.name != "pyproject.toml":
            return _build(_inherit(_read(path)), clean(str(path)), path)
        table = _tool_table(path)
        if table is None:
            raise PolicyError(f"{clean(str(path))}: has no [tool.audit-cli] table; add one or pass another policy")
        return _build(_inherit(table), clean(str(path)), path)

    @classmethod
    def find(cls, directory: Path | None = None) -> Policy:
        """[tool.audit-cli] of `directory`'s pyproject.toml where there is one, else the default policy."""
        path = (directory or Path.cwd()) / "pyproject.toml"
        table = _tool_table(path) if path.is_file() else None
        if table is None:
            return cls.load("default")
        return _build(_inherit(table), clean(str(path)), path, discovered=True)

    def convicts(self, rule_id: str) -> bool:
        """Can a finding of this rule make the verdict FAIL?"""
        return rule_id in self.rules and self.rules[rule_id].severity == "fail"

    def refuse_inside(self, model: str | Path) -> None:
        """Raises PolicyError when this policy lies in the audited folder: whoever made the model may have written it.

        Beside a single audited file, a policy counts only when the user named it.
        """
        if self.path is None:
            return
        root = Path(model)
        if not root.is_dir():
            if not self.discovered:
                return
            root = root.parent
        for policy in (self.path.absolute(), self.path.resolve()):
            if policy.is_relative_to(root.absolute()) or policy.is_relative_to(root.resolve()):
                raise PolicyError(
                    f"policy {clean(str(self.path))} lies beside or inside the audited model; "
                    "move it elsewhere, or pass --policy default"
                )


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
    reasons = [_reason(item, policy) for item in sorted(fails, key=_excess, reverse=True) + doubts]
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


def _excess(item: JudgedFinding) -> float:
    """How far above its threshold: comparable between families, whose scores have different limits."""
    return item.finding.score / item.threshold if item.threshold > 0 else item.finding.score - item.threshold


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
    return f"p-value {finding.p_value:.2g} among clean models, {rule.alpha:.2g} accepted"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyError(
            f"cannot read policy {clean(str(path))}: {error.strerror}; pass a TOML file, `default` or `strict`"
        ) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"policy {clean(str(path))} is not TOML: {clean(str(error))}") from error


def _tool_table(pyproject: Path) -> dict[str, Any] | None:
    tool = _read(pyproject).get("tool")
    table = tool.get("audit-cli") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise PolicyError(f"{clean(str(pyproject))}: tool.audit-cli is not a table; write [tool.audit-cli]")
    return table


def _bundled_table(name: str) -> dict[str, Any]:
    table = _read(bundled("rules") / f"{name}.toml")
    return table if name == "default" else _inherit(table)


def _inherit(table: dict[str, Any]) -> dict[str, Any]:
    base = table.get("extends", "default")
    if base not in BUNDLED:
        raise PolicyError(f"extends = {clean(repr(base), 40)}: a policy extends one of {', '.join(BUNDLED)}")
    return _merge(_bundled_table(base), table)


def _merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `change` on top; tables merge key by key, anything else replaces."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _plain(value: Any) -> Any:
    """TOML values as JSON has them: dates become text."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


def _build(table: dict[str, Any], where: str, path: Path | None, *, discovered: bool = False) -> Policy:
    table = _plain(table)
    if problems := violations(table, "policy"):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise PolicyError(
            f"policy {where}: {clean(problems[0], 300)}{more}; `audit-cli schema policy` says what may stand there"
        )
    budget = table.get("budget", {})
    canonical = json.dumps(table, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Policy(
        name=clean(table["name"]),
        sha256=hashlib.sha256(canonical.encode()).hexdigest(),
        rules={rule_id: _rule(entry) for rule_id, entry in table["rules"].items()},
        min_images=table["trusted"]["min_images"],
        min_per_class=table["trusted"]["min_per_class"],
        expires_days=table["verdict"]["expires_days"],
        max_drop=float(table["repair"]["max_drop"]),
        max_asr=float(table["repair"]["max_asr"]),
        timeout=cast(float | None, budget.get("timeout")),
        max_memory=cast(int | None, budget.get("max_memory")),
        weights=table.get("model", {}).get("weights"),
        settings=table["repair"].get("settings", {}),
        calibrations=tuple(_beside(path, name) for name in table.get("calibration", {}).get("files", ())),
        waivers=tuple(_waiver(entry, where) for entry in table.get("waivers", ())),
        path=path,
        discovered=discovered,
    )


def _beside(policy: Path | None, name: str) -> Path:
    """A path in a policy is relative to the policy's own folder."""
    return (policy.parent if policy else Path()) / name


def _rule(entry: Mapping[str, Any]) -> Rule:
    threshold, alpha = entry["threshold"], entry.get("alpha") or None  # 0: never by p-value
    if not isinstance(threshold, Mapping):
        return Rule(entry["severity"], float(threshold), alpha=alpha)
    families = {family: float(limit) for family, limit in threshold.items() if family != "default"}
    return Rule(entry["severity"], float(threshold["default"]), families, alpha)


def _waiver(entry: Mapping[str, Any], where: str) -> Waiver:
    try:
        expires = datetime.date.fromisoformat(entry["expires"])
    except ValueError as error:
        raise PolicyError(
            f"policy {where}: waivers: expires = {entry['expires']!r} is no day of the calendar"
        ) from error
    return Waiver(**{**entry, "expires": expires})
