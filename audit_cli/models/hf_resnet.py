"""Hugging Face `ResNetForImageClassification` (the networks of He et al. 2016 under transformers' tensor names).

`from_pretrained` is never called on the target: it would let the config choose code. The few numbers below are taken
from config.json, checked, and handed to a `ResNetConfig` of our own; every other key is ignored. What the config
promises and what the header holds must agree on the meta device before a weight is allocated.

Differs from the paper: none; strides and activation follow the config as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from audit_cli.checkpoint import Checkpoint
from audit_cli.errors import CheckpointError, UnsupportedError
from audit_cli.models.blueprint import Blueprint, View
from audit_cli.report.sanitise import clean

CLASS = "ResNetForImageClassification"
_STEM, _HEAD = "resnet.embedder.embedder.convolution.weight", "classifier.1.weight"
_ACTIVATIONS = ("relu", "gelu", "silu", "swish", "leaky_relu", "relu6", "tanh")
_WIDTH_CAP = 65_536  # channels; the widest published ResNet has 8,192


class Logits(nn.Module):
    """A transformers classifier that answers with its logits alone. (N, 3, H, W) -> (N, classes)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.model(pixel_values=x, return_dict=True).logits)


def recognise(view: View, checkpoint: Checkpoint) -> Blueprint | None:
    """A Blueprint when the names are transformers' ResNet names, None when they are not."""
    if _STEM not in view.tensors or len(view.shape(_HEAD)) != 2:
        return None
    if checkpoint.config is None:
        where = clean(str(checkpoint.source))
        raise UnsupportedError(f"{where}: Hugging Face ResNet weights without config.json; give the model folder")
    config = checkpoint.config
    if config.get("model_type") != "resnet" or config.get("architectures") not in (None, [CLASS]):
        raise _contradiction("model_type or architectures", f"is not that of {CLASS}, as the tensors are")
    classes = view.shape(_HEAD)[0]
    depths = _integers(config, "depths", [3, 4, 6, 3])
    widths = _integers(config, "hidden_sizes", [256, 512, 1024, 2048])
    if len(depths) != len(widths) or sum(depths) > len(view.tensors):  # else depths could ask for 10**9 blocks
        raise _contradiction("depths", "promises other blocks than the weights hold")
    settings = {
        "num_channels": _choice(config, "num_channels", (3,), 3),
        "embedding_size": _integers(config, "embedding_size", 64)[0],
        "hidden_sizes": widths,
        "depths": depths,
        "layer_type": _choice(config, "layer_type", ("basic", "bottleneck"), "bottleneck"),
        "hidden_act": _choice(config, "hidden_act", _ACTIVATIONS, "relu"),
        "downsample_in_first_stage": _choice(config, "downsample_in_first_stage", (False, True), False),
        "downsample_in_bottleneck": _choice(config, "downsample_in_bottleneck", (False, True), False),
        "num_labels": classes,
    }
    return Blueprint(
        arch=f"hf-resnet-{settings['layer_type']}-{'-'.join(map(str, depths))}",
        make=partial(_make, settings),
        head="model.classifier.1",
        names={f"model.{name}": original for name, original in view.names().items()},
        size=(224, 224),
        labels=_labels(config, classes),
        mismatch=CheckpointError,
    )


def _make(settings: Mapping[str, Any]) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification  # slow to import, and only needed here

    return Logits(ResNetForImageClassification(ResNetConfig(**settings)))


def _integers(config: Mapping[str, object], key: str, default: list[int] | int) -> list[int]:
    """The positive integer, or short list of them, under `key`, always as a list."""
    value = config.get(key, default)
    values = value if isinstance(value, list) and isinstance(default, list) else [value]
    if not 1 <= len(values) <= 8 or not all(type(item) is int and 1 <= item <= _WIDTH_CAP for item in values):
        raise _contradiction(key, f"is not 1 to 8 integers from 1 to {_WIDTH_CAP}")
    return cast(list[int], values)


def _choice(config: Mapping[str, object], key: str, allowed: tuple[object, ...], default: object) -> object:
    value = config.get(key, default)
    if not any(type(value) is type(item) and value == item for item in allowed):
        raise _contradiction(key, f"is not one of {', '.join(map(str, allowed))}")
    return value


def _labels(config: Mapping[str, object], classes: int) -> tuple[str, ...]:
    """Class names in logit order; () when the config has none or only the placeholders LABEL_0, LABEL_1 …"""
    mapping = config.get("id2label")
    if mapping is None:
        return ()
    if not isinstance(mapping, dict) or mapping.keys() != {str(number) for number in range(classes)}:
        raise _contradiction("id2label", f"does not name classes 0 to {classes - 1}, which the weights have")
    labels = tuple(mapping[str(number)] for number in range(classes))
    if not all(isinstance(label, str) for label in labels):
        raise _contradiction("id2label", "holds a name that is no string")
    return () if labels == tuple(f"LABEL_{number}" for number in range(classes)) else labels


def _contradiction(key: str, what: str) -> CheckpointError:
    return CheckpointError(f"config.json: {key} {what}; correct it or pass --arch with a factory of your own")
