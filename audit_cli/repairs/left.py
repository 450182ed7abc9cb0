"""What is left of the recovered triggers, put on images as a stranger would; inside the network: inside.py."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from audit_cli.classifier import Classifier
from audit_cli.metrics import asr, predict
from audit_cli.types import Context, Trigger, TrustedData


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
