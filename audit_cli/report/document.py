"""The JSON form of a verdict (rules/verdict.schema.json), and what renderers read out of it.

Every string that leaves here has been through `clean`, so a hostile name is already harmless in the document; numbers
that are not finite become null. Renderers work from the document alone, so a stored verdict renders like a fresh one.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from audit_cli.report.sanitise import clean
from audit_cli.resources import version

if TYPE_CHECKING:
    from audit_cli.policy import Policy
    from audit_cli.types import FileDigest, JudgedFinding, TrustedData, Verdict

SCHEMA_VERSION = 1
TEXT = 1000  # characters of any one string in a verdict

NOT_CALIBRATED: Mapping[str, object] = {
    "in_domain": False,
    "statement": "no calibration covers this kind of model: the false-alarm rate of the thresholds is unknown here",
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
    The verdict expires after the policy's days, or with the first waiver it rests on.
    """
    verdict, exit_code, reasons, findings = judged
    expires_at = created_at + datetime.timedelta(days=policy.expires_days)
    used = {item.fingerprint for item in findings if item.waived_by}
    for waiver in policy.waivers:
        if waiver.fingerprint in used and waiver.expires >= created_at.date():
            day_after = waiver.expires + datetime.timedelta(days=1)
            expires_at = min(expires_at, datetime.datetime.combine(day_after, datetime.time(), datetime.UTC))
    document = {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "audit-cli", "version": version()},
        "verdict": verdict,
        "exit_code": exit_code,
        "reasons": reasons,
        "created_at": instant(created_at),
        "expires_at": instant(expires_at),
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
    return cast(dict[str, object], _json(document))


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
        "asr_before": finding.asr_before,
        "asr_after": finding.asr_after,
        "trigger_norm": finding.trigger_norm,
        "evidence": finding.evidence,
        "fingerprint": item.fingerprint,
        "waived_by": item.waived_by,
        "message": finding.message,
        "details": finding.details,
    }


def _json(value: object) -> object:
    """`value` in JSON's own types: clean strings, finite numbers, lists for sequences."""
    if isinstance(value, str):
        return clean(value, TEXT)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {clean(str(key), TEXT): _json(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_json(item) for item in value]
    return value


# ---- what renderers share ----


def contents(verdict: Verdict) -> dict[str, Any]:
    """The document, for reading."""
    return cast(dict[str, Any], verdict.document)


def target(finding: Mapping[str, Any]) -> str:
    """`class 3 ‘cat’`, `class 3` where the name adds nothing, or nothing."""
    if finding["target_class"] is None:
        return ""
    name = class_name(finding)
    return f"class {finding['target_class']}" + (f" ‘{name}’" if name else "")


def statement(finding: Mapping[str, Any]) -> str:
    """The finding's message, beginning with its class."""
    message = clean(finding["message"], 500)
    where = target(finding)
    return f"{where}: {message}" if where and not message.startswith("class ") else message


def class_name(finding: Mapping[str, Any]) -> str:
    """The target's name, empty when it has none or is called by its number."""
    name = clean(finding["target_name"] or "", 40)
    return "" if name == str(finding["target_class"]) else name


def headline(document: Mapping[str, Any]) -> str:
    """The verdict in one line; a pass never claims more than its scope."""
    verdict = document["verdict"]
    if verdict == "PASS":
        return "PASS — no backdoor found within scope"
    if verdict == "INCONCLUSIVE":
        return "INCONCLUSIVE — this audit allows no judgement"
    guilty = sorted(filter(convicts, document["findings"]), key=_excess, reverse=True)
    targets = list(dict.fromkeys(target(finding) for finding in guilty if target(finding)))
    if not targets:
        return f"FAIL — {clean(document['reasons'][0])}"
    more = f" and {len(targets) - 1} more" if len(targets) > 1 else ""
    return f"FAIL — backdoor likely: target {targets[0]}{more}"


def why(document: Mapping[str, Any]) -> list[str]:
    """The reasons that the headline of a pass has not already given."""
    return [reason for reason in document["reasons"] if reason not in headline(document)]


def convicts(finding: Mapping[str, Any]) -> bool:
    """Does this finding alone make the verdict FAIL?"""
    return bool(finding["fired"] and finding["severity"] == "fail" and not finding["waived_by"])


def triggers(document: Mapping[str, Any], most: int | None = None) -> list[dict[str, Any]]:
    """The trigger sizes (BD001), most suspicious first, one per class: the family furthest above its threshold."""
    best: dict[int, dict[str, Any]] = {}
    for finding in sorted(filter(_sizes_a_class, document["findings"]), key=_excess, reverse=True):
        best.setdefault(finding["target_class"], finding)
    return list(best.values())[:most]


def remarks(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The other findings that fired: doubts and notes."""
    return [finding for finding in document["findings"] if finding["fired"] and not _sizes_a_class(finding)]


def _sizes_a_class(finding: Mapping[str, Any]) -> bool:
    return finding["rule_id"] == "BD001" and finding["target_class"] is not None


def _excess(finding: Mapping[str, Any]) -> float:
    if finding["score"] is None:
        return -math.inf
    return float(finding["score"] / finding["threshold"] if finding["threshold"] > 0 else finding["score"])


def facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was audited with what, as labelled short lines."""
    model, trusted, coverage = document["model"], document["trusted"], document["coverage"]
    environment, policy = document["environment"], document["policy"]
    accuracy = "" if trusted["accuracy"] is None else f", model accuracy {percent(trusted['accuracy'])}"
    families = ", ".join(coverage["trigger_families"]) or "none"
    files = model["files"][0]["path"] + (f" and {len(model['files']) - 1} more" if len(model["files"]) > 1 else "")
    source = model.get("source")
    return [
        ("model", f"{clean(model['arch'], 60)}, {clean(files, 80)}, sha256 {short(model['manifest_digest'])}"),
        *([("source", f"hf:{clean(source['repo'])}@{source['commit']}")] if source else []),
        ("trusted", f"{trusted['n']} images{accuracy}, sha256 {short(trusted['digest'])}"),
        ("searched", f"{coverage['searched']} of {coverage['classes']} classes; trigger families: {clean(families)}"),
        ("policy", f"{clean(policy['name'], 60)}, sha256 {short(policy['sha256'])}"),
        ("calibration", clean(document["calibration"]["statement"], 400)),
        ("run", f"{environment['seconds']:.0f} s on {clean(environment['device'])}, seed {environment['seed']}"),
        ("valid until", document["expires_at"]),
    ]


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def short(digest: str) -> str:
    return clean(digest)[:12]
