"""What scores do clean models of this kind get? A small JSON file that gives a score its p-value.

Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005. With the scores of n clean models in hand, a
further clean model of the same kind is as likely to come at any rank among them, so for the score s of a suspect

    p = (1 + number of clean models with a score >= s) / (n + 1)

is at most α with probability at most α when the suspect is clean: no distribution is assumed, and no poisoned model is
needed. A model's score is its largest over classes and trigger families, each family's in units of a fixed scale, since
clean models score higher in some families than in others; so p holds for the whole scan.

Differs from the book: none; "of the same kind" is a `Domain`, told from architecture, image size and class names.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from audit_cli.checkpoint import strict_json
from audit_cli.classifier import Classifier
from audit_cli.errors import AuditError, PolicyError
from audit_cli.report.sanitise import clean
from audit_cli.resources import bundled_calibrations, violations
from audit_cli.types import Finding, TrustedData

RULE = "BD001"  # whose scores are calibrated
SIZE_CAP = 4 * 2**20  # bytes of a calibration file


@dataclass(frozen=True)
class Domain:
    """Models of one kind: the architecture without its sizes, the image size in pixels, and the classes by name: what
    is ordinary for photographs need not be for digits."""

    arch: str
    height: int
    width: int
    classes: tuple[str, ...]

    @classmethod
    def of(cls, classifier: Classifier, trusted: TrustedData) -> Domain:
        _, height, width = trusted.shape
        names = (clean(name, 60).casefold() for name in trusted.class_names)
        return cls(kind(classifier.arch), height, width, tuple(sorted(names)))

    def __str__(self) -> str:
        few = ", ".join(self.classes[:3]) + (" …" if len(self.classes) > 3 else "")
        return f"{self.arch}, {self.height} x {self.width}, {len(self.classes)} classes: {few}"


def kind(arch: str) -> str:
    """`resnet20-w24-cifar` -> `resnet-cifar`: the architecture's name without depth and width."""
    return re.sub(r"(-w?\d+)+(?=-|$)|\d+(?=-|$)", "", arch)


@dataclass(frozen=True)
class Clean:
    """One clean model: sha256 over its files, accuracy on the trusted images, its largest score in each family."""

    digest: str
    arch: str
    accuracy: float
    scores: Mapping[str, float]

    def score(self, scales: Mapping[str, float]) -> float:
        """The largest of its scores, in units of the families' scales."""
        return max(value / scales.get(family, 1.0) for family, value in self.scores.items())


@dataclass(frozen=True)
class Calibration:
    """Clean models of one domain, and the detector and trusted data they were scored with."""

    name: str
    domain: Domain
    detector: str  # `fingerprint` of the detector
    trusted: str  # digest of the trusted images
    images: int
    scales: Mapping[str, float]  # of each family; the policy's thresholds when the models were scored
    models: tuple[Clean, ...]

    def p_value(self, family: str, score: float) -> float:
        """Chance, at most, that a clean model of this domain has so high a score in any family; in (0, 1]."""
        scaled = score / self.scales.get(family, 1.0)
        return (1 + sum(model.score(self.scales) >= scaled for model in self.models)) / (len(self.models) + 1)

    def resolves(self, alpha: float | None) -> bool:
        """Are there enough clean models for a p-value of `alpha`? Always when no p-value decides anything."""
        return alpha is None or 1 / (len(self.models) + 1) <= alpha

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON form."""
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()

    def document(self) -> dict[str, object]:
        return {"schema_version": 1, **asdict(self), "models": [asdict(model) for model in self.models]}

    def statement(self, alpha: float | None) -> dict[str, object]:
        """The verdict's `calibration`. alpha: the accepted false-alarm rate, None when no p-value decides."""
        n = len(self.models)
        rate = None if alpha is None else math.floor(alpha * (n + 1) + 1e-9) / (n + 1)
        scored = f"{n} clean models of this kind ({self.domain}) have been scored"
        bound = (
            "; the thresholds are the policy's own" if rate is None else f": one more is flagged in {rate:.1%} at most"
        )
        return {
            "in_domain": True,
            "statement": scored + bound,
            "name": self.name,
            "digest": self.digest,
            "clean_models": n,
            "threshold": self.thresholds(alpha),
            "fpr": rate,
        }

    def thresholds(self, alpha: float | None) -> dict[str, float]:
        """Per family, the score that must be passed for a p-value of `alpha`; {} without one."""
        if alpha is None:
            return {}
        allowed = math.floor(alpha * (len(self.models) + 1) + 1e-9) - 1
        reached = sorted((model.score(self.scales) for model in self.models), reverse=True)[allowed]
        return {family: round(reached * scale, 4) for family, scale in self.scales.items()}


def fingerprint(detector: object) -> str | None:
    """What BD001 scores depend on, 16 hex digits: scores of differently set detectors must not be compared. None for a
    detector that gives none."""
    scoring = getattr(detector, "scoring", None)
    return hashlib.sha256(scoring.encode()).hexdigest()[:16] if isinstance(scoring, str) else None


def clean_model(digest: str, classifier: Classifier, accuracy: float, findings: Iterable[Finding]) -> Clean:
    """The entry of a clean model. Raises AuditError when its scan gave no score."""
    scores: dict[str, float] = {}
    for finding in findings:
        if finding.rule_id == RULE:
            scores[finding.family] = round(max(finding.score, scores.get(finding.family, 0.0)), 4)
    if not scores:
        raise AuditError(f"{classifier.arch}: the scan gave no {RULE} score; raise its budget or add trusted images")
    return Clean(digest, classifier.arch, round(accuracy, 4), scores)


def with_p_values(findings: Sequence[Finding], calibration: Calibration | None) -> list[Finding]:
    """The findings, those of BD001 with their p-value."""
    if calibration is None:
        return list(findings)
    return [replace(f, p_value=calibration.p_value(f.family, f.score)) if f.rule_id == RULE else f for f in findings]


def find(own: Sequence[Path], domain: Domain, detectors: Iterable[object]) -> Calibration | None:
    """The calibration of `domain` by one of `detectors`: from the user's own files, else from those that come with the
    package. None when there is none."""
    known = {fingerprint(detector) for detector in detectors}
    for calibration in map(read, (*own, *bundled_calibrations())):
        if calibration.domain == domain and calibration.detector in known:
            return calibration
    return None


def read(path: Path) -> Calibration:
    """The calibration in the JSON file at `path`. Raises PolicyError when it is none."""
    where = clean(str(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"calibration {where}: cannot be read ({error.strerror})") from error
    if len(content) > SIZE_CAP:
        raise PolicyError(f"calibration {where}: over {SIZE_CAP // 2**20} MiB; expected what `calibrate` writes")
    try:
        document: Any = strict_json.parse_object(content, where)
    except AuditError as error:
        raise PolicyError(f"calibration {where}: {error}") from error
    if wrong := violations(document, "calibration"):
        raise PolicyError(f"calibration {where}: {wrong[0]}")
    models = tuple(Clean(**model) for model in document.pop("models"))
    del document["schema_version"]
    domain = Domain(**document["domain"] | {"classes": tuple(document["domain"]["classes"])})
    return Calibration(**document | {"domain": domain, "models": models})
