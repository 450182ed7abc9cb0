"""--arch timm:NAME: timm's network, the checkpoint's weights."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from audit_cli.checkpoint import Checkpoint, open_checkpoint
from audit_cli.checkpoint.save import save_weights
from audit_cli.errors import CheckpointError, UnsupportedError, UsageError
from audit_cli.models import build, identify, state_for_checkpoint

Opened = Callable[..., Checkpoint]


def test_without_timm_the_remedy_is_said(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"timm is not installed; pip install audit-cli\[timm\]"):
        build(opened({"a": torch.ones(1)}), arch="timm:resnet18")


def test_a_folder_of_timm_names_its_network(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", {"cls_token": torch.ones(1, 1, 8)}, {"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny\x1b[31m", "num_classes": 3}))
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(UnsupportedError, match="--arch timm:vit_tiny") as said:
        identify(checkpoint)
    assert str(said.value).isprintable()


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("name", "head", "side"),
    [
        ("vit_tiny_patch16_224", "head", 224),
        ("convnext_atto", "head.fc", 64),
        ("resnet18", "fc", 64),
        ("eva02_tiny_patch14_224", "head", 224),  # buffers that no file holds
    ],
)
def test_logits_are_theirs(name: str, head: str, side: int, timm: Any, opened: Opened) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, pretrained=False, num_classes=6).eval()
    checkpoint = opened(theirs.state_dict(), lambda tensor: f"model.{tensor}")
    ours = build(checkpoint, arch=f"timm:{name}")
    images = torch.rand(2, 3, side, side)
    with torch.no_grad():
        expected = theirs(images)
        logits, latents = ours.outputs(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.head(latents), expected, rtol=0, atol=1e-4)
    assert (ours.head_name, ours.num_classes, ours.size, ours.arch) == (head, 6, (224, 224), f"timm:{name}")
    back = state_for_checkpoint(ours, checkpoint)
    assert all(torch.equal(back[tensor], value) for tensor, value in checkpoint.load().items())


def test_nasnet_is_compared_before_it_is_allocated(timm: Any, opened: Opened) -> None:
    """340 MB of weights: here only its outline is made, and a header that lies is refused on it."""
    with torch.device("meta"):
        whole = timm.create_model("nasnetalarge", pretrained=False, num_classes=4)
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.state_dict().items()}
    assert shapes["last_linear.weight"] == (4, 4032)
    small = {"last_linear.weight": torch.zeros(4, 4032), "last_linear.bias": torch.zeros(4)}
    with pytest.raises(CheckpointError, match=r"does not fit timm:nasnetalarge: no `.*more"):
        build(opened(small), arch="timm:nasnetalarge")


@pytest.mark.parametrize("name", ["nonsense", "hf-hub:org/name", "hf_hub", "local-dir", "../x", "resnet18\n"])
def test_a_name_timm_has_not(name: str, timm: Any, opened: Opened) -> None:
    with pytest.raises(UsageError, match="--arch"):
        build(opened({"a": torch.ones(1)}), arch=f"timm:{name}")


def test_heads_that_are_not_one_linear_layer(timm: Any, opened: Opened) -> None:
    with pytest.raises(UnsupportedError, match="no single linear head"):
        build(opened({"a": torch.ones(1)}), arch="timm:deit_tiny_distilled_patch16_224")
    with pytest.raises(CheckpointError, match=r"has no `head\.weight`, the head of timm:vit_tiny_patch16_224"):
        build(opened({"a": torch.ones(1)}), arch="timm:vit_tiny_patch16_224")


@pytest.mark.slow
def test_nasnet(timm: Any, opened: Opened) -> None:
    theirs = timm.create_model("nasnetalarge", pretrained=False, num_classes=4).eval()
    ours = build(opened(theirs.state_dict()), arch="timm:nasnetalarge")
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-4)
    assert (ours.head_name, ours.size) == ("last_linear", (331, 331))
