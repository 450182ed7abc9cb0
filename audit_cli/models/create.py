"""Untrained networks by name, under the names that recognition prints.

    resnet18, resnet34, resnet50, resnet101, resnet152      7x7 stem, for large images
    resnet18-cifar …                                        the same with a 3x3 stem, for small images
    resnet8-cifar, resnet14-cifar, resnet20-cifar …         three stages, depth 6n + 2

`-w24` anywhere after the depth sets the channels of the first stage: `resnet8-w24-cifar`, `resnet8-cifar-w24`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from audit_cli.classifier import Classifier
from audit_cli.errors import UsageError
from audit_cli.models.cifar_resnet import network
from audit_cli.models.resnet import BlockShape, ResNet
from audit_cli.report.sanitise import clean

NAME = re.compile(
    r"resnet(?P<depth>\d{1,4})(?:-w(?P<width>[1-9]\d{0,3}))?(?P<cifar>-cifar)?(?:-w(?P<width_last>[1-9]\d{0,3}))?"
)
FOUR_STAGES: dict[int, tuple[bool, tuple[int, ...]]] = {  # depth -> (bottleneck blocks, blocks per stage)
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
    152: (True, (3, 8, 36, 3)),
}
EXPECTED = "expected resnet18, resnet18-cifar, resnet20-cifar, resnet8-w24-cifar and the like"


def create(
    arch: str,
    classes: int,
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Classifier:
    """The untrained network `arch` with `classes` outputs and the given normalisation, in eval mode.

    The weights come from torch's global generator; seed it. Raises UsageError for a name that is none.
    """
    match = NAME.fullmatch(arch)
    if not match or (match["width"] and match["width_last"]):
        raise UsageError(f"--arch {clean(arch, 60)}: unknown; {EXPECTED}")
    depth, width = int(match["depth"]), int(match["width"] or match["width_last"] or 0)
    small = match["cifar"] is not None
    if depth in FOUR_STAGES:
        width = width or 64
        module = four_stages(depth, classes, width, stem=3 if small else 7)
        plain = width == 64
    elif small and depth % 6 == 2 and 8 <= depth <= 1202:
        width = width or 16
        module = network(depth, classes, width)
        plain = width == 16
    else:
        raise UsageError(
            f"--arch {clean(arch, 60)}: no ResNet has {depth} layers{' and that stem' if small else ''}; {EXPECTED}"
        )
    name = f"resnet{depth}{'' if plain else f'-w{width}'}{'-cifar' if small else ''}"
    size = None if small else (224, 224)
    return Classifier(module, "fc", arch=name, mean=mean, std=std, size=size).eval()


def four_stages(depth: int, classes: int, width: int = 64, stem: int = 3) -> ResNet:
    """A four-stage ResNet of `depth` layers whose stages are width, 2, 4 and 8 times width wide."""
    bottleneck, depths = FOUR_STAGES[depth]
    stages, inputs = [], width
    for number, blocks in enumerate(depths):
        inner = width * 2**number
        out = 4 * inner if bottleneck else inner
        shapes = []
        for block in range(blocks):
            stride = 2 if number and not block else 1
            shortcut = "conv" if stride > 1 or inputs != out else "identity"
            shapes.append(BlockShape(inputs, inner, out, 1, stride, bottleneck, shortcut))
            inputs = out
        stages.append(tuple(shapes))
    return ResNet(stem, tuple(stages), classes)
