"""What is left of a recovered trigger is told by images that obey nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from toys import noise_data, small

from audit_cli.classifier import Classifier
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.source_mask import SourceMask
from audit_cli.metrics import classes_of, predict
from audit_cli.repairs.left import strongest, through_fog
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


class Pale(nn.Module):
    """Logits of two classes: whether the pixels of a channel differ by more than 0.9, or by less."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[1.0], [-1.0]]))

    def forward(self, images: Tensor) -> Tensor:
        channels = images.flatten(2)
        return self.head((channels.amax(2) - channels.amin(2)).amin(1, keepdim=True) - 0.9)


def test_a_loss_of_contrast_that_a_pattern_does_not_bring_is_seen_through_fog() -> None:
    classifier, context = Classifier(Pale(), "head", arch="toy").frozen(), Context()
    data = noise_data(classes=2, per_class=20, side=32)
    nothing = Trigger(Additive(), {"pattern": torch.zeros(1, *data.shape)}, 1, 0.0)
    assert strongest(classifier, [nothing], data, context) == 0.0
    assert through_fog(classifier, [nothing], {0}, data, context) == 1.0
    assert through_fog(classifier, [], {1, 0}, data, context) == 1.0
    assert through_fog(classifier, [], {0}, data, context) == 0.0
    assert through_fog(classifier, [], (), data, context) is None
