"""Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, "Deep Residual Learning for Image Recognition", 2016, section 4.2,
https://arxiv.org/abs/1512.03385.

The CIFAR family: a 3x3 stem, three stages of basic blocks (16, 32, 64 channels in the paper; read from the shapes
here), global average, linear head; depth = 6n + 2. Shortcuts without weights are option A (subsample, pad with zero
channels), those with a 1x1 convolution option B.

Differs from the paper: any number of blocks per stage and any widths.
"""

from __future__ import annotations

from itertools import pairwise

from audit_cli.checkpoint import Checkpoint
from audit_cli.models.blueprint import Blueprint, View
from audit_cli.models.resnet import BlockShape, ResNet, design


def recognise(view: View, checkpoint: Checkpoint) -> Blueprint | None:
    """A Blueprint when the names are those of a three-stage ResNet, None when they are not."""
    return design(view, 3, _name, pad=True)


def _name(stem: int, stages: tuple[tuple[BlockShape, ...], ...]) -> str:
    """`resnet20-cifar`, with the width of the first stage where it is not the paper's: `resnet20-w8-cifar`."""
    per_block = 3 if stages[0][0].bottleneck else 2
    depth = per_block * sum(len(blocks) for blocks in stages) + 2
    width = stages[0][0].out
    return f"resnet{depth}-cifar" if width == 16 else f"resnet{depth}-w{width}-cifar"


def network(depth: int, classes: int, width: int = 16) -> ResNet:
    """An untrained member of the family with option-A shortcuts; `depth` is 6n + 2. Raises ValueError otherwise."""
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"cifar_resnet.network(depth={depth}): must be 8, 14, 20, …")
    widths = (width, width, 2 * width, 4 * width)
    stages = []
    for inputs, out in pairwise(widths):
        first = BlockShape(
            inputs, out, out, 1, 1 if inputs == out else 2, False, "identity" if inputs == out else "pad"
        )
        stages.append((first, *[BlockShape(out, out, out, 1, 1, False, "identity")] * (blocks - 1)))
    return ResNet(3, tuple(stages), classes)
