"""Hugging Face ResNets: the config is data, the module is ours, the logits are transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

from audit_cli.checkpoint import open_checkpoint
from audit_cli.checkpoint.save import save_weights
from audit_cli.classifier import Classifier
from audit_cli.errors import AuditError, CheckpointError, UnsupportedError
from audit_cli.models import build, identify, state_for_checkpoint

TINY: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 2], "num_labels": 3}
Randomised = Callable[[nn.Module], nn.Module]


def folder(path: Path, model: nn.Module, **changes: object) -> Path:
    """A model folder as `save_pretrained` makes it, with `changes` to the config."""
    document = json.loads(model.config.to_json_string()) | changes
    (path / "config.json").write_text(json.dumps(document))
    save_weights(path / "model.safetensors", model.state_dict(), {"format": "pt"})
    return path


def loaded(path: Path) -> Classifier:
    with open_checkpoint(path) as checkpoint:
        return build(checkpoint)


@pytest.mark.parametrize(
    "settings",
    [
        {"layer_type": "basic"},
        {"layer_type": "bottleneck", "hidden_act": "gelu"},
        {"layer_type": "bottleneck", "downsample_in_bottleneck": True, "downsample_in_first_stage": True},
    ],
)
def test_logits_are_transformers(tmp_path: Path, randomised: Randomised, settings: dict[str, Any]) -> None:
    labels = {0: "ant", 1: "bee", 2: "cat"}
    config = ResNetConfig(**TINY, **settings, id2label=labels, architectures=["ResNetForImageClassification"])
    theirs = randomised(ResNetForImageClassification(config))
    ours = loaded(folder(tmp_path, theirs))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = theirs(images).logits
        logits, latents = ours.outputs(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.head(latents), expected, rtol=0, atol=1e-4)
    assert (ours.num_classes, ours.labels, ours.size) == (3, ("ant", "bee", "cat"), (224, 224))


def test_weights_go_back_under_their_own_names(tmp_path: Path) -> None:
    model = ResNetForImageClassification(ResNetConfig(**TINY))
    with open_checkpoint(folder(tmp_path, model)) as checkpoint:
        ours = build(checkpoint)
        assert ours.labels == ()  # LABEL_0, LABEL_1, LABEL_2 are no names
        back = state_for_checkpoint(ours, checkpoint)
        assert all(torch.equal(back[name], tensor) for name, tensor in checkpoint.load().items())
    assert back.keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_sizes": [16, 10**12]}, "hidden_sizes is not 1 to 8 integers"),
        ({"hidden_sizes": [16, 64]}, r"does not fit hf-resnet-.*expected \["),
        ({"embedding_size": 65536}, "does not fit"),
        ({"embedding_size": [8]}, "embedding_size"),
        ({"embedding_size": True}, "embedding_size"),
        ({"depths": [1, 60_000]}, "depths promises other blocks"),
        ({"depths": [1, 3]}, r"no `model\.resnet\.encoder"),
        ({"depths": [1]}, "depths"),
        ({"depths": "evil"}, "depths"),
        ({"hidden_act": "os.system"}, "hidden_act is not one of"),
        ({"layer_type": ["basic"]}, "layer_type"),
        ({"num_channels": 1}, "num_channels"),
        ({"downsample_in_bottleneck": 1}, "downsample_in_bottleneck"),
        ({"id2label": {"0": "a"}}, "id2label does not name classes 0 to 2"),
        ({"id2label": {"0": "a", "1": "b", "2": 3}}, "id2label"),
        ({"model_type": "vit"}, "model_type"),
        ({"architectures": ["EvilModel"]}, "architectures"),
    ],
)
def test_a_config_that_contradicts_the_weights(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    model = ResNetForImageClassification(ResNetConfig(**TINY, layer_type="basic"))
    with open_checkpoint(folder(tmp_path, model, **changes)) as checkpoint, pytest.raises(CheckpointError) as caught:
        identify(checkpoint)
    caught.match(message)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ("resnet", UnsupportedError, "without config.json; give the model folder"),
        ("other", UnsupportedError, r"config\.json says `vit`"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, weights: str, error: type[AuditError], message: str) -> None:
    if weights == "resnet":
        save_weights(tmp_path / "model.safetensors", ResNetForImageClassification(ResNetConfig(**TINY)).state_dict())
    else:
        save_weights(tmp_path / "model.safetensors", {"vit.embeddings.cls_token": torch.ones(1, 1, 8)})
        (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(error, match=message):
        identify(checkpoint)
