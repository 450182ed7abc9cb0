"""What is left of the recovered triggers, put on images as a stranger would, in fog too; inside the network: inside.py.

A blended pattern takes contrast away as no recovered one does, so a network may have learnt that a loss of contrast
belongs to the backdoor. What is recovered without it is then too little to unlearn: a repaired model obeyed on 2 % of
images, but on 78 % through thin fog, and on 71 % with the true trigger (digits-blend, fixtures/results/fog-study.json).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.metrics import asr, predict
from audit_cli.repairs.stamping import fogged
from audit_cli.types import Context, Trigger, TrustedData

THIN = 0.2  # ours: share of the colour; twice as much leads repaired networks to a class by itself (development)


def strongest(
    classifier: Classifier,
    triggers: Sequence[Trigger],
    data: TrustedData,
    context: Context,
    answers: Tensor | None = None,
) -> float | None:
    """The largest success of `triggers` on the images of `data` that each is meant for, given what the pivot `answers`
    without them; None when there are none."""
    rates = []
    for trigger in triggers:
        meant = trigger.meant_for(data.labels, answers)
        if bool(meant.any()):
            outputs = predict(classifier, trigger(data.images[meant]), context)
            rates.append(asr(outputs, data.labels[meant], trigger.target))
    return max(rates, default=None)


def through_fog(
    classifier: Classifier,
    patterns: Sequence[Trigger],
    classes: Collection[int],
    data: TrustedData,
    context: Context,
) -> float | None:
    """The largest share of the images of other classes that thin fog, each image's in a colour of its own, leads to one
    of the `classes`, or that one of the `patterns` leads to its target in it; None where there are neither."""
    fog = fogged(data.images, torch.full((len(data), 1, 1, 1), THIN), context.generator(stream=6))
    rates = [strongest(classifier, patterns, replace(data, images=fog), context)]
    if classes:
        outputs = predict(classifier, fog, context)
        rates += [asr(outputs, data.labels, target) for target in classes]
    return max((rate for rate in rates if rate is not None), default=None)
