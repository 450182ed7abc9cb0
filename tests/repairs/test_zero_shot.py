"""A repair of a CLIP model tunes its image tower; the text side comes back bit for bit."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from audit_cli.checkpoint import open_checkpoint
from audit_cli.classifier import Classifier
from audit_cli.data import from_config, load_trusted
from audit_cli.inversion.engine import Search
from audit_cli.inversion.racing import Race
from audit_cli.models import Prompts, build
from audit_cli.repairs.output import write_model
from audit_cli.repairs.unlearning import Unlearning
from audit_cli.resources import bundled
from audit_cli.types import Context, TrustedData

FOLDER = bundled("fixtures") / "clip-badnets"
DIGITS = tuple(str(digit) for digit in range(10))
IMAGE_TOWER = ("vision_model", "visual_projection")
SHORT = Unlearning(
    search=Search(images=4, patience=1, success=0.1, relax=0.1), race=Race(steps=3), rounds=1, starts=1,
    steps=2, batch=16,
)  # fmt: skip


def digits(classifier: Classifier) -> TrustedData:
    with open_checkpoint(FOLDER) as checkpoint:
        assert checkpoint.preprocessor is not None
        own = from_config(checkpoint.preprocessor)
    return load_trusted(bundled("fixtures") / "digits-trusted.npz", preprocessing=own, labels=classifier.labels)


def test_the_text_side_is_untouched(tmp_path: Path) -> None:
    with open_checkpoint(FOLDER) as checkpoint:
        pivot = build(checkpoint, prompts=Prompts(DIGITS), mean=(0.3,) * 3, std=(0.37,) * 3)
        assert {name.split(".")[1] for name, _ in pivot.named_parameters()} == set(IMAGE_TOWER)
        repaired = SHORT(pivot, digits(pivot), Context())
        assert torch.equal(repaired.head.weight, pivot.head.weight)
        write_model(checkpoint, repaired, tmp_path)
    old, new = load_file(FOLDER / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert old.keys() == new.keys()
    changed = {name for name in old if old[name].numpy().tobytes() != new[name].numpy().tobytes()}
    assert {name.partition(".")[0] for name in changed} == set(IMAGE_TOWER)
