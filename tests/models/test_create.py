"""Networks by name: the name that recognition gives back, torchvision's weights where it has the network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import get_model

from audit_cli import models
from audit_cli.checkpoint import open_checkpoint
from audit_cli.checkpoint.save import save_weights
from audit_cli.errors import UsageError
from audit_cli.models.create import create

NAMES = {
    "resnet18": "resnet18",
    "resnet18-w8": "resnet18-w8",
    "resnet18-cifar": "resnet18-cifar",
    "resnet34-w4-cifar": "resnet34-w4-cifar",
    "resnet8-cifar": "resnet8-cifar",
    "resnet8-cifar-w24": "resnet8-w24-cifar",
    "resnet14-w8-cifar": "resnet14-w8-cifar",
    "resnet20-cifar-w16": "resnet20-cifar",
    "resnet32-cifar": "resnet32-cifar",
}


@pytest.mark.parametrize("asked", NAMES)
def test_recognised_under_its_name(asked: str, tmp_path: Path) -> None:
    made = create(asked, 5)
    assert made.arch == NAMES[asked]
    save_weights(tmp_path / "model.safetensors", made.module.state_dict())
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        found = models.build(checkpoint)
    assert (found.arch, found.num_classes, found.size) == (made.arch, 5, made.size)
    side = 32 if made.size is None else 64
    images = torch.rand(2, 3, side, side)
    torch.testing.assert_close(found(images), made(images))


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_torchvisions_networks(name: str) -> None:
    theirs = get_model(name, weights=None, num_classes=7).eval()
    ours = create(name, 7)
    ours.module.load_state_dict(theirs.state_dict())
    images = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(ours(images), theirs(images))


def test_normalisation() -> None:
    made = create("resnet8-w4-cifar", 3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    assert made.normalise(torch.full((1, 3, 8, 8), 0.75)).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    "name",
    ["", "vgg16", "resnet", "resnet8", "resnet19-cifar", "resnet8-w0-cifar", "resnet8-w4-cifar-w8", "resnet2-cifar"],
)
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(UsageError, match="expected resnet18"):
        create(name, 10)
