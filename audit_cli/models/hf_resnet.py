"""Hugging Face `ResNetForImageClassification` (the networks of He et al. 2016 under transformers' tensor names).

`from_pretrained` is never called on the target: it would let the config choose code. The few numbers below are taken
from config.json, checked, and handed to a `ResNetConfig` of our own; every other key is ignored. What the config
promises and what the header holds must agree on the meta device before a weight is allocated.

Differs from the paper: none; strides and activation follow the config as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from audit_cli.checkpoint import Checkpoint
from audit_cli.errors import CheckpointError, UnsupportedError
from audit_cli.models.blueprint import Blueprint, View
from audit_cli.models.hf_config import ACTIVATIONS, Logits, choice, contradiction, integers, labels
from audit_cli.report.sanitise import clean

CLASS = "ResNetForImageClassification"
_STEM, _HEAD = "resnet.embedder.embedder.convolution.weight", "classifier.1.weight"


def recognise(view: View, checkpoint: Checkpoint) -> Blueprint | None:
    """A Blueprint when the names are transformers' ResNet names, None when they are not."""
    if _STEM not in view.tensors or len(view.shape(_HEAD)) != 2:
        return None
    if checkpoint.config is None:
        where = clean(str(checkpoint.source))
        raise UnsupportedError(f"{where}: Hugging Face ResNet weights without config.json; give the model folder")
    config = checkpoint.config
    if config.get("model_type") != "resnet" or config.get("architectures") not in (None, [CLASS]):
        raise contradiction("model_type or architectures", f"is not that of {CLASS}, as the tensors are")
    classes = view.shape(_HEAD)[0]
    depths = integers(config, "depths", [3, 4, 6, 3])
    widths = integers(config, "hidden_sizes", [256, 512, 1024, 2048])
    if len(depths) != len(widths) or sum(depths) > len(view.tensors):  # else depths could ask for 10**9 blocks
        raise contradiction("depths", "promises other blocks than the weights hold")
    settings = {
        "num_channels": choice(config, "num_channels", (3,), 3),
        "embedding_size": integers(config, "embedding_size", 64)[0],
        "hidden_sizes": widths,
        "depths": depths,
        "layer_type": choice(config, "layer_type", ("basic", "bottleneck"), "bottleneck"),
        "hidden_act": choice(config, "hidden_act", ACTIVATIONS, "relu"),
        "downsample_in_first_stage": choice(config, "downsample_in_first_stage", (False, True), False),
        "downsample_in_bottleneck": choice(config, "downsample_in_bottleneck", (False, True), False),
        "num_labels": classes,
    }
    return Blueprint(
        arch=f"hf-resnet-{settings['layer_type']}-{'-'.join(map(str, depths))}",
        make=partial(_make, settings),
        head="model.classifier.1",
        names={f"model.{name}": original for name, original in view.names().items()},
        size=(224, 224),
        labels=labels(config, classes),
        mismatch=CheckpointError,
    )


def _make(settings: Mapping[str, Any]) -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification  # slow to import, and only needed here

    return Logits(ResNetForImageClassification(ResNetConfig(**settings)))
