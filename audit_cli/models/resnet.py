"""Kaiming He, Xiangyu Zhang, Shaoqing Ren, Jian Sun, "Deep Residual Learning for Image Recognition", 2016,
https://arxiv.org/abs/1512.03385; Zagoruyko, Komodakis (wide), 2016; Xie et al. (ResNeXt), 2017.

Four-stage residual networks under torchvision's tensor names, or the usual CIFAR names (`shortcut`, `linear`). Blocks
per stage, widths, groups and classes are all read from tensor shapes, so any member of the family is recognised.

Differs from the paper: the stride of a bottleneck is on its 3x3 convolution, as in torchvision (shapes cannot tell).
A 7x7 stem has stride 2 and a max-pool, a 3x3 stem neither, as in the usual CIFAR variant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from audit_cli.checkpoint import Checkpoint
from audit_cli.errors import UnsupportedError
from audit_cli.models.blueprint import REMEDY, Blueprint, View, remedy
from audit_cli.report.sanitise import clean

_NAMES: dict[tuple[str, tuple[int, ...]], str] = {  # (block, blocks per stage) -> torchvision's name
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
_ARGUMENTS = {"in_chans": 3, "global_pool": "avg", "output_stride": 32}  # timm's defaults, and the network here
_NO_MATTER = {"num_classes", "drop_rate", "drop_path_rate", "drop_block_rate"}  # shapes tell; for training only


@dataclass(frozen=True)
class BlockShape:
    """One residual block. inner: channels between its convolutions (bottleneck), or equal to `out`. groups: of the 3x3
    convolution. shortcut: "identity", "conv" (1x1 convolution and BatchNorm) or "pad" (subsampling, zero channels)."""

    inputs: int
    inner: int
    out: int
    groups: int
    stride: int
    bottleneck: bool
    shortcut: str


class Pad(nn.Module):
    """The paper's option A: every `stride`-th pixel, and zero channels on both sides to reach `out`. No parameters."""

    def __init__(self, inputs: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before, self.after = (out - inputs) // 2, out - inputs - (out - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class Block(nn.Module):
    """y = relu(x' + f(x)): f two 3x3 convolutions, or 1x1, 3x3, 1x1; x' the shortcut. Names are torchvision's."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.bottleneck = shape.bottleneck
        conv = partial(nn.Conv2d, bias=False)
        if shape.bottleneck:
            self.conv1 = conv(shape.inputs, shape.inner, 1)
            self.conv2 = conv(shape.inner, shape.inner, 3, shape.stride, 1, groups=shape.groups)
            self.conv3 = conv(shape.inner, shape.out, 1)
            self.bn3 = nn.BatchNorm2d(shape.out)
        else:
            self.conv1 = conv(shape.inputs, shape.inner, 3, shape.stride, 1)
            self.conv2 = conv(shape.inner, shape.out, 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(shape.inner)
        self.bn2 = nn.BatchNorm2d(shape.inner if shape.bottleneck else shape.out)
        self.downsample: nn.Module = nn.Identity()
        if shape.shortcut == "conv":
            self.downsample = nn.Sequential(conv(shape.inputs, shape.out, 1, shape.stride), nn.BatchNorm2d(shape.out))
        elif shape.shortcut == "pad":
            self.downsample = Pad(shape.inputs, shape.out, shape.stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.bottleneck:
            y = self.bn3(self.conv3(F.relu(y, inplace=True)))
        return F.relu(y + cast(Tensor, self.downsample(x)), inplace=True)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, global average, linear head. (N, 3, H, W) normalised -> logits (N, classes)."""

    def __init__(self, stem: int, stages: tuple[tuple[BlockShape, ...], ...], classes: int, bias: bool = True) -> None:
        super().__init__()
        width = stages[0][0].inputs
        large = stem == 7
        self.conv1 = nn.Conv2d(3, width, stem, 2 if large else 1, stem // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large else nn.Identity()
        self.stages = len(stages)
        for number, blocks in enumerate(stages, 1):
            self.add_module(f"layer{number}", nn.Sequential(*(Block(shape) for shape in blocks)))
        self.fc = nn.Linear(stages[-1][-1].out, classes, bias=bias)

    def latents(self, x: Tensor) -> Tensor:
        """The pooled features (N, D), input of the head."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc(self.latents(x)))


def recognise(view: View, checkpoint: Checkpoint) -> Blueprint | None:
    """A Blueprint when the names are those of a four-stage ResNet, None when they are not.

    Raises UnsupportedError when timm's config.json speaks of another network: resnetblur50 has the tensors of resnet50.
    """
    blueprint = design(view, 4, _name, pad=False)
    if blueprint is not None:
        _refuse_another(blueprint.arch, checkpoint)
    return blueprint


def _refuse_another(arch: str, checkpoint: Checkpoint) -> None:
    """An error when config.json is timm's and builds another network than `arch`, or `arch` with other arguments."""
    config, where = checkpoint.config or {}, clean(str(checkpoint.source))
    name, arguments = config.get("architecture"), config.get("model_args") or {}
    if isinstance(name, str) and _bare(name) != _bare(arch):
        said = f"the tensors are those of {arch}, config.json says `{clean(name, 60)}`"
        raise UnsupportedError(f"{where}: {said}; {remedy(checkpoint)}")
    stated = arguments if isinstance(arguments, dict) else {"model_args": arguments}
    for key, value in stated.items():
        if key not in _NO_MATTER and value not in (None, _ARGUMENTS.get(key)):
            raise UnsupportedError(f"{where}: config.json changes {arch} by model_args, `{clean(key, 60)}`; {REMEDY}")


def design(
    view: View, count: int, name: Callable[[int, tuple[tuple[BlockShape, ...], ...]], str], *, pad: bool
) -> Blueprint | None:
    """The Blueprint of a ResNet with `count` stages. pad: a missing shortcut means option A, not an unknown network.

    name: (stem kernel, stages) -> architecture name. Raises UnsupportedError for a recognised network that no image
    classifier over RGB can be.
    """
    view = view.renamed(_torchvision_name)
    stem, head = view.shape("conv1.weight"), view.shape("fc.weight")
    has_stages = all(f"layer{number}.0.conv2.weight" in view.tensors for number in range(1, count + 1))
    if not has_stages or f"layer{count + 1}.0.conv2.weight" in view.tensors:
        return None
    if len(stem) != 4 or stem[2] not in (3, 7) or len(head) != 2 or "bn1.weight" not in view.tensors:
        return None
    if stem[1] != 3:
        raise UnsupportedError(f"the network takes {stem[1]} input channels; only RGB images (3) can be audited")
    stages = []
    inputs = stem[0]
    for number in range(1, count + 1):
        blocks: list[BlockShape] = []
        while f"layer{number}.{len(blocks)}.conv2.weight" in view.tensors:
            prefix = f"layer{number}.{len(blocks)}"
            blocks.append(_block(view, prefix, inputs, 2 if number > 1 and not blocks else 1, pad))
            inputs = blocks[-1].out
        stages.append(tuple(blocks))
    shapes = tuple(stages)
    return Blueprint(
        arch=name(stem[2], shapes),
        make=partial(ResNet, stem[2], shapes, head[0], "fc.bias" in view.tensors),
        head="fc",
        names=view.names(),
        size=(224, 224) if stem[2] == 7 else None,
    )


def _block(view: View, prefix: str, inputs: int, stride: int, pad: bool) -> BlockShape:
    first, second = view.shape(f"{prefix}.conv1.weight"), view.shape(f"{prefix}.conv2.weight")
    third = view.shape(f"{prefix}.conv3.weight")
    if len(first) != 4 or len(second) != 4 or (third and len(third) != 4):
        raise UnsupportedError(f"`{prefix}` has no convolutions of a residual block; {REMEDY}")
    out = third[0] if third else second[0]
    groups = max(1, first[0] // second[1]) if third else 1
    if f"{prefix}.downsample.0.weight" in view.tensors:
        shortcut = "conv"
    elif stride == 1 and inputs == out:
        shortcut = "identity"
    elif pad and out >= inputs:
        shortcut = "pad"
    else:
        raise UnsupportedError(f"`{prefix}` changes shape and has no shortcut weights; {REMEDY}")
    return BlockShape(inputs, first[0], out, groups, stride, bool(third), shortcut)


def _torchvision_name(name: str) -> str:
    """The CIFAR habits `shortcut.0` and `linear` under torchvision's names."""
    name = re.sub(r"^linear\.(weight|bias)$", r"fc.\1", name)
    return re.sub(r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample.", name)


def _bare(name: str) -> str:
    """The name of a network without whose weights or how it is written: `resnet50` of `tv_resnet50.tv_in1k`."""
    return re.sub(r"^(tv|ssl|swsl|ig)_|\..*|-cifar$|[-_]", "", name.lower())


def _name(stem: int, stages: tuple[tuple[BlockShape, ...], ...]) -> str:
    """`resnet18`, `wide_resnet50_2`, `resnext50_32x4d` where torchvision has a name, else the numbers spelled out."""
    first = stages[0][0]
    block = "bottleneck" if first.bottleneck else "basic"
    depths = tuple(len(blocks) for blocks in stages)
    base = f"resnet-{block}-{'-'.join(map(str, depths))}"
    name = _NAMES.get((block, depths), base)
    if first.groups > 1:
        name = f"{name.replace('resnet', 'resnext', 1)}_{first.groups}x{first.inner // first.groups}d"
    elif first.bottleneck and first.inner == 2 * first.inputs:
        name = f"wide_{name}_2"
    elif first.inputs != 64:
        name = f"{name}-w{first.inputs}"
    return name if stem == 7 else f"{name}-cifar"
