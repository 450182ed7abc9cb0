"""Calibrated trigger inversion exactly as published, for comparison: the gap alone decides.

Lukas, Kerschbaum: Pick your Poison: Undetectability versus Robustness in Data Poisoning Attacks, 2023,
https://arxiv.org/abs/2305.09671 (Algorithm 4).
A trigger that a backdoored model obeys, and the same model after Pivotal Tuning does not, points to a backdoor.

    for every class c:  minimise over T   CE(f(x ⊕ T; θ~), c) + ½ · CE(f(x ⊕ T; θ*), y)        x not of class c
    score_c = asr(θ~, T, c) − asr(θ*, T, c)        on images the search never saw

θ~ the suspect, θ* the suspect after Pivotal Tuning.

Differs from the paper:
- the score subtracts the reference's success with the trigger, as the paper's text and release do; the pseudo-code
  subtracts its clean accuracy.
- all classes are searched in one batch of 20 images a class; mirrored images are added to the data instead of being
  drawn at each step.
On a clean digit model every class has a gap of 0.70 to 0.88 (fixtures/results/fixtures.json): it does not separate.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.detectors.calibrated import success, uncompared
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.engine import Search
from audit_cli.repairs.pivotal_tuning import PivotalTuning
from audit_cli.types import Context, Finding, Repair, TrustedData


@dataclass(frozen=True)
class Published:
    """Algorithm 4 with the numbers for CIFAR-10."""

    steps: int = 100  # Table V, Neural Cleanse's
    reference_weight: float = 0.5  # the authors' release
    flip: bool = True  # the authors' release
    family: Additive = field(default_factory=lambda: Additive(weight=0.0))  # the size is left free
    search: Search = field(default_factory=Search)
    reference: Repair = field(default_factory=PivotalTuning)  # Table V: 2,000 steps
    fit_share: float = 0.5  # ours: share of trusted images that searching and tuning may use; the rest measures

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        """BD003 for every class, and BD107."""
        fit, holdout = trusted.split(self.fit_share, context.generator(stream=5))
        suspect = suspect.clone().on(context.device).frozen()
        reference = self.reference(suspect, fit, context).frozen()

        def keep_reference_right(stamped: Tensor, labels: Tensor) -> Tensor:
            loss = F.cross_entropy(reference(stamped).float(), labels, reduction="none")
            return self.reference_weight * loss

        data = mirrored(fit) if self.flip else fit
        state = self.search.start(self.family, torch.arange(suspect.num_classes), data.shape, context)
        context.progress.stage("additive triggers", self.steps)
        state = self.search.run(suspect, self.family, state, data, self.steps, context, keep_reference_right)
        for row in range(suspect.num_classes):
            trigger = state.last(row, self.family)
            before = success(suspect, trigger, holdout, context)
            after = success(reference, trigger, holdout, context)
            names = holdout.class_names
            yield Finding(
                rule_id="BD003",
                score=before - after,
                message=f"trigger succeeds {before:.2f} on the model and {after:.2f} after Pivotal Tuning",
                detector="published",
                family=self.family.name,
                target_class=trigger.target,
                target_name=names[trigger.target] if trigger.target < len(names) else None,
                asr_before=before,
                asr_after=after,
                trigger_norm=trigger.size,
                trigger=trigger,
            )
        yield uncompared(set(), suspect.num_classes, 0.0)


def mirrored(data: TrustedData) -> TrustedData:
    """Every image and its mirror image."""
    return replace(data, images=torch.cat([data.images, data.images.flip(3)]), labels=data.labels.repeat(2))
