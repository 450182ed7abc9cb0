"""Clean models of one domain, with their scores, and a suspect beside them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from audit_cli.calibration.domain import Domain
from audit_cli.conformal import FROM, conformal, families_of, family_of
from audit_cli.metrics import wilson

MARGIN = 0.05  # ours: of accuracy and overconfidence, around the clean models'
FEWEST = 0.8  # ours: trusted images, as a share of those the clean models were scored with
STEADIER = 0.7  # ours: of how far a change moves the classes apart, as a share of the least on a clean model
LEAST = 0.05  # ours: smaller scores are all the same

Scores = Mapping[tuple[str, str], float]  # (family, class name) -> score


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
    nonconformity: float  # the statistic that p is the rank of: conformal.py's t
    beside: str | None  # the family in which the same class is the next most unusual; None where it is in no other
    source: str | None  # the source class, or part of a change, by which it is the most unusual; None for all


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

    def away(self, accuracy: float) -> tuple[float, float]:
        """How far a model of this accuracy is from the clean ones': outside their range, then from the median."""
        known = [model.accuracy for model in self.models]
        return max(0.0, min(known) - accuracy, accuracy - max(known)), abs(self.accuracy - accuracy)

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
        p, t, second, row = conformal(self._logs(self._by_class(scores)), clean_ones, self.rows)
        families, classes = (*families_of(self.rows), None), self.domain.classes
        found = {}
        for f, c in (~p.isnan()).nonzero().tolist():
            source = self.rows[int(row[f, c])].partition(FROM)[2]
            compared = Compared(float(p[f, c]), float(t[f, c]), families[int(second[f, c])], source or None)
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
