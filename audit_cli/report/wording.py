"""What renderers read out of a verdict's document, in words.

They work from the document alone, so a stored verdict renders like a fresh one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from audit_cli.ranking import Rank, rank
from audit_cli.report.sanitise import clean

if TYPE_CHECKING:
    from audit_cli.types import Verdict

OUT_OF_REACH = 1000.0  # what policies write for scores that mean something beside clean models only
UNCALIBRATED = "BD110"
CONVICTED = 3  # classes that a repair's report names as those it was for


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
        open_ = [f for f in document["findings"] if f["fired"] and f["severity"] != "note" and not f["waived_by"]]
        if {finding["rule_id"] for finding in open_} == {UNCALIBRATED}:
            return "INCONCLUSIVE — nothing found, but no calibration to judge by"
        return "INCONCLUSIVE — this audit allows no judgement"
    guilty = sorted(filter(convicts, document["findings"]), key=_rank, reverse=True)
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
    """What BD001 says, most suspicious first, one per class: what convicts it, a trigger before what leaves none; else
    what is least likely of a clean model, else the family furthest above its threshold."""
    classes: dict[int, list[dict[str, Any]]] = {}
    for finding in sorted(filter(_sizes_a_class, document["findings"]), key=_suspicion, reverse=True):
        classes.setdefault(finding["target_class"], []).append(finding)
    shown = (next(filter(_convicting_trigger, found), found[0]) for found in classes.values())
    return list(shown)[:most]


def pictured(document: Mapping[str, Any], most: int) -> list[dict[str, Any]]:
    """The findings whose triggers are worth a look: all that convict, then what `triggers` has of the other classes."""
    found = sorted(filter(_convicting_trigger, document["findings"]), key=_suspicion, reverse=True)
    return [*found, *(finding for finding in triggers(document) if finding not in found)][:most]


def remarks(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The other findings that fired: doubts and notes."""
    return [finding for finding in document["findings"] if finding["fired"] and not _sizes_a_class(finding)]


def _sizes_a_class(finding: Mapping[str, Any]) -> bool:
    return finding["rule_id"] == "BD001" and finding["target_class"] is not None


def _convicting_trigger(finding: Mapping[str, Any]) -> bool:
    return convicts(finding) and finding["asr_before"] is not None


def _suspicion(finding: Mapping[str, Any]) -> tuple[bool, float, Rank]:
    """What convicts first, in the order of the headline; then the least likely of a clean model."""
    likely = 1.0 if finding["p_value"] is None else float(finding["p_value"])
    return convicts(finding), 0.0 if convicts(finding) else -likely, _rank(finding)


def _rank(finding: Mapping[str, Any]) -> Rank:
    score = -math.inf if finding["score"] is None else finding["score"]
    odd = finding.get("nonconformity")  # earlier verdicts do not tell
    return rank(score, finding["threshold"], odd, triggered=finding["asr_before"] is not None)


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


def about_repair(repair: Mapping[str, Any]) -> list[str]:
    """What is told of a repair below its figures, a line each: what had convicted, what else was tried, and how fast
    the trigger is learnt again."""
    others = [attempt for attempt in repair.get("attempts", []) if attempt["method"] != repair["method"]]
    lines = [f"Tried: {clean(a['method'], 60)}, refused: {clean('; '.join(a['objections']), 400)}." for a in others]
    return [*filter(None, [_repaired_from(repair)]), *lines, *filter(None, [relearned(repair)])]


def _repaired_from(repair: Mapping[str, Any]) -> str | None:
    """What had convicted the unrepaired model, a class each, the most suspicious first."""
    families: dict[str, list[str]] = {}
    for item in repair.get("convicted", []):
        families.setdefault(target(item) or "the model as a whole", []).append(clean(item["family"], 40) or "no family")
    told = [f"{name} ({', '.join(found)})" for name, found in families.items()]
    more = f" and {len(told) - CONVICTED} more" if len(told) > CONVICTED else ""
    return f"Had convicted: {'; '.join(told[:CONVICTED])}{more}." if told else None


def relearned(repair: Mapping[str, Any]) -> str | None:
    """How fast the repaired model learns the recovered trigger again, where that was tried."""
    told = repair.get("relearning")
    if not told:
        return None
    own, others = (f"{n} steps" if n else f"more than {told['tried']} steps" for n in (told["own"], told["others"]))
    name = f"class {told['target_class']}, {clean(told['family'], 40)}"
    return (
        f"Relearning: the recovered trigger ({name}) works again after {own} of training with it, "
        f"towards other classes after {others}."
    )


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def limit(finding: Mapping[str, Any]) -> str:
    """The threshold; a dash where the policy's is out of reach, as only clean models tell what is odd."""
    return "–" if finding["threshold"] >= OUT_OF_REACH else ratio(finding["threshold"])


def p_value(finding: Mapping[str, Any]) -> str:
    return "–" if finding["p_value"] is None else f"{finding['p_value']:.3f}"


def compared(found: Sequence[Mapping[str, Any]]) -> bool:
    """Is any of these findings judged beside clean models?"""
    return any(finding["p_value"] is not None for finding in found)


def short(digest: str) -> str:
    return clean(digest)[:12]
