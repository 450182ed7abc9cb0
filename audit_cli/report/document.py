"""The JSON form of a verdict (rules/verdict.schema.json).

Every string that leaves here has been through `clean`, so a hostile name is already harmless in the document; numbers
that are not finite become null.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from audit_cli.report.sanitise import clean
from audit_cli.resources import version

if TYPE_CHECKING:
    from audit_cli.policy import Policy
    from audit_cli.types import FileDigest, JudgedFinding, TrustedData

SCHEMA_VERSION = 1
TEXT = 1000  # characters of any one string in a verdict

NOT_CALIBRATED: dict[str, object] = {
    "in_domain": False,
    "statement": "no calibration holds: nobody knows how often a clean one would fail",
    "name": None,
    "digest": None,
    "clean_models": None,
    "threshold": {},
    "fpr": None,
}


def build_document(
    judged: tuple[str, int, tuple[str, ...], tuple[JudgedFinding, ...]],
    *,
    policy: Policy,
    arch: str,
    files: Sequence[FileDigest],
    manifest_digest: str,
    unaudited: Sequence[str],
    trusted: TrustedData,
    accuracy: float | None,
    classes: int,
    searched: int,
    trigger_families: Sequence[str],
    environment: Mapping[str, object],
    created_at: datetime.datetime,
    limitations: Sequence[str] = (),
    calibration: Mapping[str, object] = NOT_CALIBRATED,
    preprocessing: Mapping[str, object] | None = None,
    prompts: Mapping[str, object] | None = None,
    source: Mapping[str, object] | None = None,
    repair: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """The verdict as JSON has it; `judged` is what `judgement.judge` returned.

    created_at: an aware time. environment, calibration, preprocessing, prompts, source, repair: mappings with the
    schema's fields.
    """
    verdict, exit_code, reasons, findings = judged
    document = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "audit-cli", "version": version()},
        "verdict": verdict,
        "exit_code": exit_code,
        "reasons": reasons,
        "created_at": instant(created_at),
        "expires_at": instant(_expiry(created_at, policy, findings)),
        "model": {
            "arch": arch,
            "files": [{"path": file.path, "sha256": file.sha256, "bytes": file.bytes} for file in files],
            "manifest_digest": manifest_digest,
            "unaudited_files": unaudited,
            "preprocessing": preprocessing,
            "prompts": prompts,
            "source": source,
        },
        "trusted": {
            "digest": trusted.digest,
            "n": len(trusted),
            "per_class": trusted.per_class,
            "accuracy": accuracy,
        },
        "policy": {"name": policy.name, "sha256": policy.sha256},
        "calibration": calibration,
        "coverage": {"classes": classes, "searched": searched, "trigger_families": trigger_families},
        "findings": [_finding(item) for item in findings],
        "repair": repair,
        "environment": environment,
        "limitations": limitations,
    }
    return cast(dict[str, object], plain(document))


def _expiry(created_at: datetime.datetime, policy: Policy, findings: Sequence[JudgedFinding]) -> datetime.datetime:
    """After the policy's days, or with the first waiver that the verdict rests on."""
    used = {item.fingerprint for item in findings if item.waived_by}
    days = [w.expires for w in policy.waivers if w.fingerprint in used and w.expires >= created_at.date()]
    midnights = [
        datetime.datetime.combine(day + datetime.timedelta(days=1), datetime.time(), datetime.UTC) for day in days
    ]
    return min([created_at + datetime.timedelta(days=policy.expires_days), *midnights])


def instant(time: datetime.datetime) -> str:
    """An aware time as `2026-01-31T12:00:00Z`."""
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _finding(item: JudgedFinding) -> dict[str, object]:
    finding = item.finding
    return {
        "rule_id": finding.rule_id,
        "severity": item.severity,
        "target_class": finding.target_class,
        "target_name": finding.target_name,
        "detector": finding.detector,
        "family": finding.family,
        "score": finding.score,
        "threshold": item.threshold,
        "fired": item.fired,
        "p_value": finding.p_value,
        "nonconformity": finding.nonconformity,
        "beside": finding.beside,
        "asr_before": finding.asr_before,
        "asr_after": finding.asr_after,
        "trigger_norm": finding.trigger_norm,
        "evidence": finding.evidence,
        "fingerprint": item.fingerprint,
        "waived_by": item.waived_by,
        "message": finding.message,
        "details": finding.details,
    }


def plain(value: object) -> object:
    """`value` in JSON's own types: clean strings, finite numbers, lists for sequences."""
    if isinstance(value, str):
        return clean(value, TEXT)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key), TEXT): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return value
