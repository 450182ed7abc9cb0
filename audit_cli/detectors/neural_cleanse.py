"""Neural Cleanse as its authors describe it: the class whose mask is an outlier among the masks of all classes.

Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao: Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural
Networks, 2019, https://doi.org/10.1109/SP.2019.00031 (section V-B).

    for every class c:  minimise over T = (m, p)   CE(f((1 − m)·x + m·p), c) + λ · ‖m‖₁        x not of class c
    score_c = (median − ‖m_c‖₁) / (1.4826 · MAD)        medians over all classes; 2 and more is an outlier

Differs from the paper: λ stays as it was set, as in Lukas, Kerschbaum: Pick your Poison, 2023, Table V, whose numbers
these are; all classes are searched in one batch of 20 images a class; the anomaly index has a sign, so that unusually
large masks are not suspicious.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from audit_cli.classifier import Classifier
from audit_cli.detectors.calibrated import success, uncompared
from audit_cli.detectors.weights import robust_z
from audit_cli.inversion.engine import Search
from audit_cli.inversion.mask import Mask
from audit_cli.types import Context, Finding, TrustedData


@dataclass(frozen=True)
class NeuralCleanse:
    """The numbers for CIFAR-10; on ImageNet λ is 1e-5 and a class is searched for 200 steps."""

    steps: int = 100  # Pick your Poison, Table V
    family: Mask = field(default_factory=lambda: Mask(weight=0.02, growth=1.0))  # λ: Table V; it stays as it is
    search: Search = field(default_factory=Search)
    fit_share: float = 0.5  # ours: share of trusted images that searching may use; the rest measures

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.fit_share < 1:
            raise ValueError(f"{self}: steps must be positive, 0 < fit_share < 1")

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        """BD007 for every class, and BD107."""
        fit, holdout = trusted.split(self.fit_share, context.generator(stream=5))
        suspect = suspect.clone().on(context.device).frozen()
        state = self.search.start(self.family, torch.arange(suspect.num_classes), fit.shape, context)
        context.progress.stage("mask triggers", self.steps)
        state = self.search.run(suspect, self.family, state, fit, self.steps, context)
        norms = self.family.size(state.parameters).double()
        for c, score in enumerate((-robust_z(norms)).tolist()):
            trigger = state.last(c, self.family)
            yield Finding(
                rule_id="BD007",
                score=score,
                message=f"the mask of this class covers {trigger.size:.3g} pixels, anomaly index {score:.2f}",
                detector="neural_cleanse",
                family=self.family.name,
                target_class=c,
                target_name=holdout.class_names[c] if c < len(holdout.class_names) else None,
                asr_before=success(suspect, trigger, holdout, context),
                trigger_norm=trigger.size,
                trigger=trigger,
            )
        yield uncompared(set(), suspect.num_classes, 0.0)
