"""Models without BatchNorm and without convolutions go through gate, search and every repair, in both precisions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from audit_cli.audit import load
from audit_cli.classifier import Classifier
from audit_cli.detectors.calibrated import Calibrated
from audit_cli.detectors.sanity import sanity
from audit_cli.errors import UnsupportedError
from audit_cli.inversion.engine import Search
from audit_cli.inversion.racing import Race
from audit_cli.repairs import REPAIRS
from audit_cli.repairs.pivotal_tuning import PivotalTuning
from audit_cli.types import Context, TrustedData

SEARCH, RACE = Search(images=4, patience=1, success=0.1, relax=0.1), Race(steps=3)
NEED_MAPS = ("fine_pruning", "nad")  # feature maps of convolutions
SHORT: dict[str, dict[str, object]] = {
    "clean_retraining": {"epochs": 1},
    "fine_pruning": {"batches": 1, "steps": 1},
    "nad": {"teacher_steps": 1, "steps": 1},
    "neural_cleanse": {"steps": 1, "search": SEARCH, "race": RACE},
    "unlearning": {"rounds": 1, "starts": 1, "suspicious": 0.1, "steps": 1, "search": SEARCH, "race": RACE},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Classifier]:
    torch.manual_seed(0)
    vit = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    swin = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2, "patch_size": 2}
    folder = tmp_path_factory.mktemp("models")
    made = {
        "vit": ViTForImageClassification(ViTConfig(**vit, image_size=16, patch_size=4, num_labels=4)),
        "swin": SwinForImageClassification(SwinConfig(**swin, image_size=16, num_labels=4)),
        "convnext": ConvNextForImageClassification(
            ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=16, num_labels=4)
        ),
    }
    for name, model in made.items():
        model.save_pretrained(Path(folder / name))
    return {name: load(folder / name) for name in made}


@pytest.fixture(scope="module")
def trusted() -> TrustedData:
    labels = torch.arange(4).repeat(8)
    images = torch.rand(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return TrustedData(images, labels, tuple("abcd"), "0" * 64, "random")


@pytest.mark.parametrize("name", REPAIRS)
@pytest.mark.parametrize("model", ["vit", "swin", "convnext"])
def test_repairs(name: str, model: str, models: dict[str, Classifier], trusted: TrustedData) -> None:
    repair = REPAIRS[name](**SHORT.get(name, {"steps": 1}), batch=8, pad=1)
    for dtype in (torch.float32, torch.bfloat16):
        context = Context(seed=1, dtype=dtype)
        if name in NEED_MAPS and model == "vit":
            with pytest.raises(UnsupportedError, match="hf-vit-1: has no"):
                repair(models[model], trusted, context)
            continue
        if name == "fine_pruning" and model == "swin":
            with pytest.raises(UnsupportedError, match="no convolution but perhaps the embedding of patches"):
                repair(models[model], trusted, context)
            continue
        before = {key: tensor.clone() for key, tensor in models[model].state_dict().items()}
        repaired = repair(models[model], trusted, context)
        assert all(torch.equal(before[key], tensor) for key, tensor in models[model].state_dict().items())
        after = repaired.state_dict()
        assert any(not torch.equal(after[key], before[key]) for key in before)
        assert all(bool(after[key].isfinite().all()) for key in before)
        assert {after[key].dtype for key in before if before[key].is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", ["vit", "swin", "convnext"])
def test_gate_and_search(model: str, dtype: torch.dtype, models: dict[str, Classifier], trusted: TrustedData) -> None:
    context = Context(seed=1, dtype=dtype)
    suspect = models[model].clone().on(context.device)
    gate = sanity(suspect, trusted, context, stated="test", choice=None, min_images=1, min_per_class=1)
    assert "BD101" in {finding.rule_id for finding in gate}
    findings = list(
        Calibrated(search=SEARCH, race=RACE, references=(PivotalTuning(steps=1, batch=8, pad=1),))(
            suspect, trusted, context
        )
    )
    searched = {finding.target_class for finding in findings if finding.rule_id == "BD001"}
    assert searched == {0, 1, 2, 3}
