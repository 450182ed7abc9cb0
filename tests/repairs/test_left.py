"""What is left of a recovered trigger is told by images that obey nothing else."""

from __future__ import annotations

import torch
from toys import noise_data, small

from audit_cli.inversion.mask import Mask
from audit_cli.inversion.source_mask import SourceMask
from audit_cli.metrics import classes_of, predict
from audit_cli.repairs.left import strongest
from audit_cli.types import Context, Trigger, TrustedData


def invisible(family: Mask | SourceMask, data: TrustedData, target: int, source: int | None = None) -> Trigger:
    """A trigger that changes no pixel."""
    _, height, width = data.shape
    parameters = {"mask": torch.full((1, 1, height, width), -1e4), "pattern": torch.zeros(1, 3, height, width)}
    return Trigger(family, parameters, target, 0.0, source)


def test_images_of_a_source_class_that_are_mistaken_anyway_are_not_blamed_on_its_trigger() -> None:
    classifier, data, context = small().frozen(), noise_data(per_class=40), Context()
    answers = classes_of(predict(classifier, data.images, context))
    counts = [(int(((data.labels == s) & (answers == t)).sum()), s, t) for s in range(5) for t in range(5) if s != t]
    mistaken, source, target = next(told for told in counts if 0 < told[0] < 40)
    of_one = invisible(SourceMask(), data, target, source)
    assert strongest(classifier, [of_one], data, context) == mistaken / 40
    assert strongest(classifier, [of_one], data, context, answers) == 0.0
    assert strongest(classifier, [of_one], data, context, torch.full_like(answers, target)) is None
    of_all = invisible(Mask(), data, target)
    others = data.labels != target
    share = float((answers == target)[others].double().mean())
    assert strongest(classifier, [of_all], data, context, answers) == share > 0
