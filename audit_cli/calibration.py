"""What scores do clean models of this kind get? A small JSON file that gives a score its p-value.

Vovk, Gammerman, Shafer: Algorithmic Learning in a Random World, 2005. With the scores of n clean models in hand, a
further clean model of the same kind is as likely to come at any rank among them, so for the score s of a suspect

    p = (1 + number of clean models with a score >= s) / (n + 1)

is at most α with probability at most α when the suspect is clean: no distribution is assumed, and no poisoned model is
needed. A model's score is its largest over classes and trigger families, so p holds for the whole scan.

Differs from the book: none; "of the same kind" is a `Domain`, told from architecture, image size and class count.
"""

from __future__ import annotations

import hashlib
import json
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
    """Models of one kind: the architecture without its sizes, the image size in pixels, the number of classes."""

    arch: str
    height: int
    width: int
    classes: int

    @classmethod
    def of(cls, classifier: Classifier, trusted: TrustedData) -> Domain:
        _, height, width = trusted.shape
        return cls(kind(classifier.arch), height, width, classifier.num_classes)

    def __str__(self) -> str:
        return f"{self.arch}, {self.height} x {self.width}, {self.classes} classes"


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

    @property
    def score(self) -> float:
        return max(self.scores.values())


@dataclass(frozen=True)
class Calibration:
    """Clean models of one domain, and the detector and trusted data they were scored with."""

    name: str
    domain: Domain
    detector: str  # `fingerprint` of the detector
    trusted: str  # digest of the trusted images
    images: int
    models: tuple[Clean, ...]

    def p_value(self, score: float) -> float:
        """Chance, at most, that a clean model of this domain scores so high; in (0, 1]."""
        return (1 + sum(model.score >= score for model in self.models)) / (len(self.models) + 1)

    def false_alarms(self, thresholds: Mapping[str, float]) -> int:
        """How many of the clean models reach the threshold of a trigger family."""
        return sum(
            any(score >= thresholds.get(family, float("inf")) for family, score in model.scores.items())
            for model in self.models
        )

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON form."""
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()

    def document(self) -> dict[str, object]:
        return {"schema_version": 1, **asdict(self), "models": [asdict(model) for model in self.models]}

    def statement(self, thresholds: Mapping[str, float]) -> dict[str, object]:
        """The verdict's `calibration`."""
        n, alarms = len(self.models), self.false_alarms(thresholds)
        rate = (1 + alarms) / (n + 1)
        return {
            "in_domain": True,
            "statement": (
                f"{alarms} of {n} clean models of this kind ({self.domain}) reach the thresholds: "
                f"a further one does with a chance of at most {rate:.1%}"
            ),
            "name": self.name,
            "digest": self.digest,
            "clean_models": n,
            "threshold": dict(thresholds),
            "fpr": rate,
        }


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
    return [replace(f, p_value=calibration.p_value(f.score)) if f.rule_id == RULE else f for f in findings]


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
    return Calibration(**document | {"domain": Domain(**document["domain"]), "models": models})
