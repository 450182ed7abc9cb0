"""The small types everything else plugs into. Frozen, without behaviour beyond what their fields imply.

A `Finding` is a measurement; only `judgement.judge` turns findings into a `Verdict`. Images are float NCHW in [0, 1]
everywhere; normalisation is part of the classifier, so a trigger lives in pixel space and is portable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

NO_CLASS = -1  # the target of a trigger when no class is known

if TYPE_CHECKING:
    from audit_cli.classifier import Classifier


@dataclass(frozen=True)
class TrustedData:
    """Clean labelled images the defender owns.

    images: (N, 3, H, W) float32 in [0, 1]. labels: (N,) int64 in [0, len(class_names)). digest: sha256 over the decoded
    pixels and labels as read, before preprocessing.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    digest: str
    source: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def per_class(self) -> tuple[int, ...]:
        return tuple(torch.bincount(self.labels, minlength=len(self.class_names)).tolist())

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.images.shape[1], self.images.shape[2], self.images.shape[3]

    def take(self, index: Tensor) -> TrustedData:
        """The images at `index` (M,) int64, in that order."""
        return TrustedData(self.images[index], self.labels[index], self.class_names, self.digest, self.source)

    def split(self, fraction: float, generator: torch.Generator) -> tuple[TrustedData, TrustedData]:
        """Two disjoint parts, stratified by class: `fraction` of every class (rounded up) first, the rest second."""
        order = torch.randperm(len(self), generator=generator)
        shuffled = self.labels[order]
        rank = torch.empty_like(order)  # rank of each shuffled image within its class
        for c in range(len(self.class_names)):
            of_class = shuffled == c
            rank[of_class] = torch.arange(int(of_class.sum()))
        wanted = (torch.tensor(self.per_class, dtype=torch.float64) * fraction).ceil()[shuffled]
        first = rank < wanted
        return self.take(order[first]), self.take(order[~first])


class TriggerFamily(Protocol):
    """One parametric way to alter an image. Every tensor has a leading class axis K: one batch serves all classes."""

    @property
    def name(self) -> str: ...

    @property
    def lr(self) -> float:
        """Adam's step size for this family's parameters."""
        ...

    @property
    def weight(self) -> float:
        """First weight of the size in the objective."""
        ...

    @property
    def growth(self) -> float:
        """Factor by which that weight grows while the trigger works."""
        ...

    @property
    def success(self) -> float:
        """Success in (0, 1] at which the sizes of this family's triggers are compared."""
        ...

    @property
    def per_source(self) -> bool:
        """True: one trigger for each pair of a source and a target class. False: one for each target class."""
        ...

    def ceiling(self, shape: tuple[int, int, int]) -> float:
        """The size taken for a class whose search failed on images of `shape` (C, H, W): the largest that a trigger of
        a bounded family can have. inf where that says little; the class then counts as the largest that succeeded.
        """
        ...

    def initial(self, classes: int, shape: tuple[int, int, int], generator: torch.Generator) -> dict[str, Tensor]:
        """Fresh parameters for `classes` triggers on images of `shape` (C, H, W); every tensor has K in front."""
        ...

    def stamp(self, parameters: Mapping[str, Tensor], images: Tensor) -> Tensor:
        """(K, B, C, H, W) in [0, 1] -> the same shape, still in [0, 1], each class's trigger applied."""
        ...

    def size(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """(K,) the norm that inversion makes small, in the family's own unit; differentiable."""
        ...


@dataclass(frozen=True)
class Trigger:
    """One recovered trigger: callable on images (N, C, H, W) in [0, 1]."""

    family: TriggerFamily
    parameters: Mapping[str, Tensor]  # leading axis 1
    target: int  # NO_CLASS: not to a class, but to one embedding
    size: float
    source: int | None = None  # the class it was searched for, None: all but the target

    def meant_for(self, labels: Tensor, answers: Tensor | None = None) -> Tensor:
        """(N,) bool: the images, by their labels (N,), that it should send to its target.

        answers: (N,) classes that a model gives without it. Of one source class those that are taken for the target
        anyway say nothing of the trigger and are left out: of some pairs of classes they are many.
        """
        if self.source is None:
            return labels != self.target
        meant = labels == self.source
        return meant if answers is None else meant & (answers != self.target)

    def __call__(self, images: Tensor) -> Tensor:
        """In float32 even where a training step autocasts: in bfloat16 a warp would read beside the image."""
        parameters = {name: value.to(images.device) for name, value in self.parameters.items()}
        with torch.autocast(images.device.type, enabled=False):
            return self.family.stamp(parameters, images.unsqueeze(0)).squeeze(0)


@dataclass(frozen=True)
class Finding:
    """A measurement without a judgement. `score` is higher when more suspicious; the policy owns the threshold."""

    rule_id: str
    score: float
    message: str
    detector: str = ""
    family: str = ""
    target_class: int | None = None
    target_name: str | None = None
    p_value: float | None = None
    nonconformity: float | None = None  # where it was compared with clean models: the statistic that p_value ranks
    beside: str | None = None  # where it has a p-value: the family in which the same class is the next most unusual
    asr_before: float | None = None
    asr_after: float | None = None
    trigger_norm: float | None = None
    evidence: str | None = None
    details: Mapping[str, float | int | str | bool | None] = field(default_factory=dict)
    trigger: Trigger | None = None  # never serialised; evidence and repair use it
    by_source: Mapping[str, float] = field(default_factory=dict)  # by source class, or part of a change

    def fingerprint(self, manifest: str) -> str:
        """16 hex digits that name this finding on this model: what a waiver refers to."""
        key = f"{manifest}|{self.rule_id}|{self.family}|{self.target_class}"
        return hashlib.sha256(key.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FileDigest:
    """One audited file: path relative to the model root, sha256 of its bytes, size in bytes."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class JudgedFinding:
    """A finding with what the policy says of it. fired: score >= threshold."""

    finding: Finding
    severity: str  # "fail" | "inconclusive" | "note"
    threshold: float
    fired: bool
    fingerprint: str
    waived_by: str | None = None


@dataclass(frozen=True)
class Verdict:
    """The whole answer, ready to be rendered. `document` is the JSON form (rules/verdict.schema.json)."""

    verdict: str  # "PASS" | "FAIL" | "INCONCLUSIVE"
    exit_code: int
    reasons: tuple[str, ...]
    findings: tuple[JudgedFinding, ...]
    document: Mapping[str, object]


class Progress(Protocol):
    """Where long work reports to. Implementations print; the library never does."""

    def stage(self, name: str, total: int) -> None:
        """A new stage of `total` steps begins; the one before is over."""
        ...

    def advance(self, steps: int = 1, note: str = "") -> None:
        """`steps` more of the current stage are done; `note` is a short remark such as the leading class."""
        ...


class Silent:
    """The Progress that says nothing."""

    def stage(self, name: str, total: int) -> None: ...

    def advance(self, steps: int = 1, note: str = "") -> None: ...


class Detector(Protocol):
    """Measures a suspect; findings come as they are made. Randomness, device and precision come from `context`."""

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterable[Finding]: ...


class Repair(Protocol):
    """Returns a new classifier; the input is untouched. `trusted` is the fit part only, never the holdout."""

    def __call__(self, pivot: Classifier, trusted: TrustedData, context: Context) -> Classifier: ...


class Budget(Protocol):
    """A limit that long loops consult; `check` raises BudgetExceeded, naming the limit and the remedy."""

    def check(self) -> None: ...


class Unlimited:
    """The Budget that never ends."""

    def check(self) -> None: ...


@dataclass(frozen=True)
class Context:
    """What every algorithm needs and must not take from globals. `seed` starts each algorithm's own generator."""

    seed: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32  # of the forward passes (autocast); parameters stay float32
    progress: Progress = field(default_factory=Silent)
    budget: Budget = field(default_factory=Unlimited)

    def generator(self, stream: int = 0) -> torch.Generator:
        """A CPU generator of its own for each (seed, stream), so that one algorithm's draws never shift another's."""
        return torch.Generator().manual_seed(self.mixed(stream))

    def mixed(self, stream: int) -> int:
        """The seed of each (seed, stream) for torch, which takes 64 bits: larger numbers wrap around."""
        return (self.seed * 1_000_003 + stream) % 2**64

    def autocast(self) -> torch.autocast:
        """Forward passes run under this: a no-op in float32."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report progress and let the budget speak: called once per optimisation step by every long loop."""
        self.progress.advance(steps, note)
        self.budget.check()
