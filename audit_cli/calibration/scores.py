"""From findings to the scores that are compared with clean models', and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from audit_cli.calibration.domain import Domain, named
from audit_cli.calibration.models import Calibration, Clean
from audit_cli.classifier import Classifier
from audit_cli.conformal import FROM
from audit_cli.detectors.calibrated import APART
from audit_cli.detectors.profile import Profile
from audit_cli.errors import AuditError
from audit_cli.types import Finding

RULE = "BD001"  # whose scores are calibrated
ONLY_COMPARED = frozenset(Profile().families)  # of these a score alone means nothing


def fingerprints(detector: object) -> dict[str, str]:
    """By family, what BD001 scores depend on, 16 hex digits: scores of differently set detectors must not be compared.
    Empty for a detector that gives none."""
    scoring: Mapping[str, str] = getattr(detector, "scoring", {})
    return {family: hashlib.sha256(text.encode()).hexdigest()[:16] for family, text in scoring.items()}


def clean_model(
    digest: str,
    classifier: Classifier,
    accuracy: float,
    findings: Iterable[Finding],
    domain: Domain,
    moved: Mapping[str, float],
    overconfidence: float | None = None,
) -> Clean:
    """The entry of a clean model. Raises AuditError when its scan gave no score, or two of its classes one name."""
    if domain.ambiguous:
        raise AuditError(f"{classifier.arch}: two classes have the same name, so scores cannot be kept; rename one")
    scores = scores_of(findings)
    if not scores:
        raise AuditError(f"{classifier.arch}: the scan gave no {RULE} score; raise its budget or add trusted images")
    families = dict.fromkeys(family for family, _ in scores)
    by_class = {f: tuple(scores.get((f, c)) for c in domain.classes) for f in families}
    sure = None if overconfidence is None else round(overconfidence, 4)
    return Clean(digest, classifier.arch, round(accuracy, 4), by_class, rounded(moved), sure)


def rounded(moved: Mapping[str, float]) -> dict[str, float]:
    """As a calibration file has them: `Profile.moved` to four digits."""
    return {change: round(apart, 4) for change, apart in moved.items()}


def scores_of(findings: Iterable[Finding]) -> dict[tuple[str, str], float]:
    """The scores that are calibrated, by family and class name as a `Domain` has it; those for one source class, or for
    one part of a change, are a family of their own."""
    found = {}
    for f in findings:
        if f.rule_id == RULE and f.target_name and f.family not in APART:
            target = named(f.target_name)
            found[f.family, target] = round(f.score, 4)
            found |= {(from_source(f.family, name), target): round(s, 4) for name, s in f.by_source.items()}
    return found


def from_source(family: str, source: str) -> str:
    """What a calibration calls the scores of `family` for images of one class alone, or for one part of a change."""
    return f"{family}{FROM}{named(source)}"


def with_p_values(findings: Sequence[Finding], calibration: Calibration | None) -> list[Finding]:
    """The findings, those of BD001 with their p-values where the calibration knows family and class, and with what
    stands beside; without those that mean nothing unless clean models are there to compare with. Where no triggers were
    searched for, BD107 counts the classes that have no p-value."""
    compared = calibration.compare(scores_of(findings)) if calibration else {}

    def among_clean(f: Finding) -> Finding:
        told = compared.get((f.family, named(f.target_name or "")))
        if f.rule_id != RULE or told is None:
            return f
        kind = "unusual_change" if f.family in ONLY_COMPARED else "unusual_source"
        source = {kind: told.source} if told.source else {}
        odd = round(told.nonconformity, 3)
        return replace(f, p_value=told.p, nonconformity=odd, beside=told.beside, details={**f.details, **source})

    told = [among_clean(f) for f in findings]
    known = {f.target_class for f in told if f.rule_id == RULE and f.p_value is not None}
    told = [_unsearched(f, len(known)) if f.details.get("only_compared") else f for f in told]
    return [f for f in told if f.p_value is not None or f.family not in ONLY_COMPARED]


def _unsearched(finding: Finding, known: int) -> Finding:
    """BD107 (detectors/calibrated.py) of a scan without searches, where clean models tell of so many classes."""
    message = f"{finding.message}; {known} classes were compared with clean models" if known else finding.message
    return replace(finding, score=max(0.0, finding.score - known), message=message)
