"""Policies: what may be in one, and where it comes from. What follows from it is in `judgement`.

A policy is a TOML file: a severity and a threshold per rule, minima for the trusted data, budgets, and waivers bound to
one model. It inherits from a bundled policy, so a file states only what differs. Every rule has a page in `rules/`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from audit_cli.errors import PolicyError
from audit_cli.report.sanitise import clean
from audit_cli.resources import bundled, violations

if TYPE_CHECKING:
    from audit_cli.types import Finding

BUNDLED = ("default", "strict", "thresholds")


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
    max_asr_inside: float
    timeout: float | None = None  # seconds
    max_memory: int | None = None  # bytes
    weights: str | None = None  # the file to audit where a folder has several formats
    settings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # repair -> its hyper-parameters
    calibrations: tuple[Path, ...] = ()  # files of the user's own, looked at before the bundled ones
    waivers: tuple[Waiver, ...] = ()
    path: Path | None = None
    discovered: bool = False
    table: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)  # all of it, as the file has it

    @classmethod
    def load(cls, source: str | Path) -> Policy:
        """A bundled one by name, a TOML file, or a pyproject.toml with a [tool.audit-cli] table. Raises PolicyError."""
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


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        named = f"pass a TOML file, or one of {', '.join(BUNDLED)}"
        raise PolicyError(f"cannot read policy {clean(str(path))}: {error.strerror}; {named}") from error
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
        max_asr_inside=float(table["repair"]["max_asr_inside"]),
        timeout=cast(float | None, budget.get("timeout")),
        max_memory=cast(int | None, budget.get("max_memory")),
        weights=table.get("model", {}).get("weights"),
        settings=table["repair"].get("settings", {}),
        calibrations=tuple(_beside(path, name) for name in table.get("calibration", {}).get("files", ())),
        waivers=tuple(_waiver(entry, where) for entry in table.get("waivers", ())),
        path=path,
        discovered=discovered,
        table=table,
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
