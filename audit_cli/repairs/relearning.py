"""Relearning: how fast does a backdoor come back? A repair that relapses at once hid it rather than removed it.

The repaired model is fine-tuned on trusted images and a few that carry the recovered trigger and its target's label,
and the steps until half of unseen triggered images go to the target are counted. The same trigger is then taught
towards other classes: that is what a model without any trace of the backdoor would need, so the two numbers compare
within one model. Reported, judged by nobody.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.metrics import asr, predict
from audit_cli.training import Fit, cross_entropy
from audit_cli.types import Context, Trigger, TrustedData


@dataclass(frozen=True)
class Relearned:
    """Steps until the trigger works again, towards its own target and, the lower median, towards others; None:
    not in the steps tried."""

    family: str
    target_class: int
    own: int | None
    others: int | None
    tried: int


@dataclass(frozen=True)
class Relearning:
    """Gentle fine-tuning, looked at every `every` steps."""

    samples: int = 8  # ours: triggered images, added to every batch
    steps: int = 80  # ours
    every: int = 2  # ours: resolution of the answer
    lr: float = 0.05  # ours: on the digit fixtures a new trigger then takes some forty steps, a live one two
    batch: int = 64
    success: float = 0.5
    others: int = 2  # ours: other targets, the next classes in order

    def __call__(
        self, repaired: Classifier, trigger: Trigger, fit: TrustedData, holdout: TrustedData, context: Context
    ) -> Relearned:
        """`fit` teaches, `holdout` measures; `repaired` is untouched."""
        K = repaired.num_classes
        targets = [(trigger.target + k) % K for k in range(1, min(self.others, K - 1) + 1)]
        counts = sorted(self._count(repaired, trigger, t, fit, holdout, context) or self.steps + 1 for t in targets)
        middle = counts[(len(counts) - 1) // 2] if counts else self.steps + 1
        own = self._count(repaired, trigger, trigger.target, fit, holdout, context)
        others = middle if middle <= self.steps else None
        return Relearned(trigger.family.name, trigger.target, own, others, self.steps)

    def _count(
        self,
        repaired: Classifier,
        trigger: Trigger,
        target: int,
        fit: TrustedData,
        holdout: TrustedData,
        context: Context,
    ) -> int | None:
        """Steps until `trigger` leads to `target` on half of the holdout."""
        device = context.device
        pupil = repaired.clone().on(device)
        others = holdout.labels != target
        unseen, labels = trigger(holdout.images[others].to(device)), holdout.labels[others].to(device)
        reached: list[int] = []

        def look(step: int) -> None:
            if reached or (step + 1) % self.every:
                return
            if asr(predict(pupil, unseen, context), labels, target) >= self.success:
                reached.append(step + 1)

        candidates = torch.nonzero(fit.labels != target).flatten()
        drawn = candidates[torch.randperm(len(candidates), generator=context.generator(stream=8))[: self.samples]]
        poison = trigger(fit.images[drawn].to(device))
        wanted = torch.full((len(drawn),), target, device=device)

        def loss(classifier: Classifier, x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(classifier, torch.cat([x, poison]), torch.cat([y, wanted]))

        fitting = Fit(self.steps, self.lr, self.batch, pad=0, flip=False, batch_norm="frozen", clip=1.0)
        fitting.run(pupil, fit.images, fit.labels, context, loss, look, stage=f"relearning towards class {target}")
        return reached[0] if reached else None
