"""What scores do clean models of this kind get? A small JSON file that gives a score its p-value (conformal.py).

"Of the same kind" is a `Domain`, told from architecture, image size and class names, with an accuracy like the clean
models'.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from audit_cli.checkpoint import strict_json
from audit_cli.classifier import Classifier
from audit_cli.conformal import FROM, conformal, families_of, family_of
from audit_cli.detectors.calibrated import APART
from audit_cli.detectors.profile import Profile
from audit_cli.errors import AuditError, PolicyError
from audit_cli.metrics import wilson
from audit_cli.report.sanitise import clean
from audit_cli.resources import violations
from audit_cli.types import Finding, TrustedData

RULE = "BD001"  # whose scores are calibrated
SIZE_CAP = 4 * 2**20  # bytes of a calibration file
MARGIN = 0.05  # ours: of accuracy and overconfidence, around the clean models'
FEWEST = 0.8  # ours: trusted images, as a share of those the clean models were scored with
STEADIER = 0.7  # ours: of how far a change moves the classes apart, as a share of the least on a clean model
LEAST = 0.05  # ours: smaller scores are all the same
ONLY_COMPARED = frozenset(Profile().families)  # of these a score alone means nothing

Scores = Mapping[tuple[str, str], float]  # (family, class name) -> score


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
        names = map(named, trusted.class_names)
        return cls(kind(classifier.arch), height, width, tuple(sorted(names)))

    @property
    def ambiguous(self) -> bool:
        """Do two classes have one name? Then their scores cannot be told apart."""
        return len(set(self.classes)) < len(self.classes)

    def __str__(self) -> str:
        few = ", ".join(self.classes[:3]) + (" …" if len(self.classes) > 3 else "")
        return f"{self.arch}, {self.height} x {self.width}, {len(self.classes)} classes: {few}"


def named(name: str) -> str:
    """A class's name as a domain has it."""
    return clean(name, 60).casefold()


def kind(arch: str) -> str:
    """`resnet20-w24-cifar` -> `resnet-cifar`: the architecture's name without depth and width."""
    return re.sub(r"(-w?\d+)+(?=-|$)|\d+(?=-|$)", "", arch)


@dataclass(frozen=True)
class Clean:
    """One clean model: sha256 over its files, accuracy on the trusted images, in each family a score for every class of
    the domain, None where the search did not get so far, how far random changes move the classes apart, and by how much
    it is surer of its answers there than right, None where that was not measured."""

    digest: str
    arch: str
    accuracy: float
    scores: Mapping[str, tuple[float | None, ...]]
    moved: Mapping[str, float] = field(default_factory=dict)  # by change, see `Profile.moved`
    overconfidence: float | None = None


class Compared(NamedTuple):
    """One family's score of one class beside the clean models'."""

    p: float
    beside: str | None  # the family in which the same class is the next most unusual; None where it is in no other
    source: str | None  # the source class from which it is the most unusual, as a domain has it; None for all


@dataclass(frozen=True)
class Calibration:
    """Clean models of one domain, and the detector and trusted data they were scored with."""

    name: str
    domain: Domain
    scoring: Mapping[str, str]  # by family, the `fingerprints` of the detector
    trusted: str  # digest of the trusted images
    images: int
    models: tuple[Clean, ...]

    @property
    def accuracy(self) -> float:
        """The median clean model's."""
        return median(model.accuracy for model in self.models)

    @property
    def rows(self) -> tuple[str, ...]:
        """The families, and those with scores for single source classes once more for each."""
        return tuple(dict.fromkeys(row for model in self.models for row in model.scores))

    def refusal(
        self,
        accuracy: float,
        images: int,
        moved: Mapping[str, float] | None = None,
        overconfidence: float | None = None,
    ) -> str | None:
        """Why a model of this accuracy on so many trusted images is not like the clean ones; None when it is. A better
        network is another kind: among ResNet-8s of 79 % a clean ResNet-32 of 92 % looks poisoned; what so many images
        leave open is granted. From fewer images scores scatter more. And one that was trained to bear noise or blur
        looks poisoned among those that were not: random changes move its answers less. So does one that was trained
        with mixtures of images: it is less sure of its answers. moved: see `Profile.moved`; overconfidence: see
        metrics.py; not looked at when None, nor where it was not measured on the clean ones."""
        return next(self._refusals(accuracy, images, moved or {}, overconfidence), None)

    def _refusals(
        self, accuracy: float, images: int, moved: Mapping[str, float], overconfidence: float | None
    ) -> Iterator[str]:
        needed = math.ceil(FEWEST * self.images - 1e-9)
        if images < needed:
            yield f"there are {images} trusted images, where {needed} are needed"
        low, high = _around(model.accuracy for model in self.models)
        least_of_it, most_of_it = wilson(accuracy * images, images)
        if most_of_it < low or least_of_it > high:
            yield f"the model is right on {accuracy:.1%}, where its clean ones stand for {low:.1%} to {high:.1%}"
        sure = [model.overconfidence for model in self.models if model.overconfidence is not None]
        low, high = _around(sure) if sure else (-1.0, 1.0)
        if overconfidence is not None and not low <= overconfidence <= high:
            off = f"the model's confidence lies {overconfidence:+.1%} from its accuracy"
            yield f"{off}, where its clean ones stand for {low:+.1%} to {high:+.1%}"
        for change, apart in moved.items():
            if apart < STEADIER * min(model.moved.get(change, 0.0) for model in self.models):
                yield f"random {change} moves the model's answers less than those of its clean ones"

    def p_values(self, scores: Scores) -> dict[tuple[str, str], float]:
        """By family and class of the suspect's `scores`: the chance, at most, that a clean model of this domain looks
        so unusual anywhere; in (0, 1]. Families and classes that no clean model was scored on are left out."""
        return {key: told.p for key, told in self.compare(scores).items()}

    def compare(self, scores: Scores) -> dict[tuple[str, str], Compared]:
        """`p_values`, each with what makes it so."""
        clean_ones = torch.stack([self._logs(model.scores) for model in self.models])
        p, second, row = conformal(self._logs(self._by_class(scores)), clean_ones, self.rows)
        families, classes = (*families_of(self.rows), None), self.domain.classes
        found = {}
        for f, c in (~p.isnan()).nonzero().tolist():
            source = self.rows[int(row[f, c])].partition(FROM)[2]
            compared = Compared(float(p[f, c]), families[int(second[f, c])], source or None)
            found[str(families[f]), classes[c]] = compared
        return found

    def only(self, families: Collection[str]) -> Calibration:
        """The same clean models, as far as they were scored in `families`."""

        def few(scores: Mapping[str, tuple[float | None, ...]]) -> dict[str, tuple[float | None, ...]]:
            return {row: values for row, values in scores.items() if family_of(row) in families}

        scoring = {family: mark for family, mark in self.scoring.items() if family in families}
        return replace(self, scoring=scoring, models=tuple(replace(m, scores=few(m.scores)) for m in self.models))

    def _by_class(self, scores: Scores) -> dict[str, tuple[float | None, ...]]:
        return {row: tuple(scores.get((row, c)) for c in self.domain.classes) for row in self.rows}

    def _logs(self, scores: Mapping[str, Sequence[float | None]]) -> Tensor:
        """(rows, classes) of log scores, NaN where there is none."""
        missing = (None,) * len(self.domain.classes)
        listed = [scores.get(row, missing) for row in self.rows]
        values = [[math.nan if s is None else math.log(max(s, LEAST)) for s in row] for row in listed]
        return torch.tensor(values, dtype=torch.float64)

    def resolves(self, alpha: float | None) -> bool:
        """Are there enough clean models for a p-value of `alpha`? Always when no p-value decides anything."""
        return alpha is None or 1 / (len(self.models) + 1) <= alpha

    @property
    def digest(self) -> str:
        """sha256 of the canonical JSON form; where a part only is compared, of that part."""
        return hashlib.sha256(json.dumps(self.document(), sort_keys=True).encode()).hexdigest()

    def document(self) -> dict[str, object]:
        return {"schema_version": 4, **asdict(self), "models": [asdict(model) for model in self.models]}

    def statement(self, alpha: float | None, searched: Collection[str]) -> dict[str, object]:
        """The verdict's `calibration`. alpha: the accepted false-alarm rate, None when no p-value decides. searched:
        the trigger families of the scan."""
        n = len(self.models)
        rate = None if alpha is None else math.floor(alpha * (n + 1) + 1e-9) / (n + 1)
        scored = f"{n} clean models of this kind ({self.domain}) have been scored"
        apart = ", ".join(sorted(set(searched) - set(self.scoring)))
        bound = (
            "; the thresholds are the policy's own"
            if rate is None
            else f": compared with them, one more drawn as they were is flagged in {rate:.1%} at most"
            + (f"; judged by thresholds, whose rate is not in this: {apart}" if apart else "")
        )
        return {
            "in_domain": True,
            "statement": scored + bound,
            "name": self.name,
            "digest": self.digest,
            "clean_models": n,
            "threshold": {},  # none that holds for every class
            "fpr": rate,
        }


def _around(values: Iterable[float]) -> tuple[float, float]:
    """The range of the clean models' values, with the margin."""
    known = list(values)
    return min(known) - MARGIN, max(known) + MARGIN


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
    """The scores that are calibrated, by family and class name as a `Domain` has it; those for one source class are a
    family of their own."""
    found = {}
    for f in findings:
        if f.rule_id == RULE and f.target_name and f.family not in APART:
            target = named(f.target_name)
            found[f.family, target] = round(f.score, 4)
            found |= {(from_source(f.family, name), target): round(s, 4) for name, s in f.by_source.items()}
    return found


def from_source(family: str, source: str) -> str:
    """What a calibration calls the scores of `family` for images of one class alone."""
    return f"{family}{FROM}{named(source)}"


def with_p_values(findings: Sequence[Finding], calibration: Calibration | None) -> list[Finding]:
    """The findings, those of BD001 with their p-values where the calibration knows family and class, and with what
    stands beside; without those that mean nothing unless clean models are there to compare with."""
    compared = calibration.compare(scores_of(findings)) if calibration else {}

    def among_clean(f: Finding) -> Finding:
        told = compared.get((f.family, named(f.target_name or "")))
        if f.rule_id != RULE or told is None:
            return f
        source = {"unusual_source": told.source} if told.source else {}
        return replace(f, p_value=told.p, beside=told.beside, details={**f.details, **source})

    told = [among_clean(f) for f in findings]
    return [f for f in told if f.p_value is not None or f.family not in ONLY_COMPARED]


def candidates(files: Iterable[Path], domain: Domain, detectors: Iterable[object]) -> list[Calibration]:
    """The calibrations of `domain` in `files`, as far as one of `detectors` scores so. Several may be of one domain and
    of other accuracies."""
    known = [fingerprints(detector).items() for detector in detectors]
    there = (calibration for calibration in map(read, files) if calibration.domain == domain)
    parts = [
        calibration.only({family for family, _ in calibration.scoring.items() & marks})
        for calibration in there
        for marks in known
    ]
    return [part for part in parts if part.scoring]


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
    del document["schema_version"]
    domain = Domain(**document["domain"] | {"classes": tuple(document["domain"]["classes"])})
    models = tuple(_model(entry, domain, where) for entry in document.pop("models"))
    return Calibration(**document | {"domain": domain, "models": models})


def _model(entry: dict[str, Any], domain: Domain, where: str) -> Clean:
    scores = {family: tuple(values) for family, values in entry["scores"].items()}
    if any(len(values) != len(domain.classes) for values in scores.values()):
        raise PolicyError(f"calibration {where}: needs a score, or null, for each of {len(domain.classes)} classes")
    return Clean(**entry | {"scores": scores})
