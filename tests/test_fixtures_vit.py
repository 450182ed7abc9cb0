"""The Vision Transformers that ship: what the manifest says of them is so, and a scan tells them apart."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from audit_cli.attacks.badnets import BadNets
from audit_cli.checkpoint import manifest, open_checkpoint
from audit_cli.cli import run
from audit_cli.data import from_config, load_trusted
from audit_cli.metrics import asr, cda, predict, wilson
from audit_cli.models import build
from audit_cli.resources import bundled, violations
from audit_cli.types import Context

FOLDER = bundled("fixtures")
MODELS: dict[str, dict[str, Any]] = json.loads((FOLDER / "manifest.json").read_text())["vit"]
TRUSTED = FOLDER / "digits-trusted.npz"


@pytest.mark.parametrize("name", MODELS)
def test_the_files_are_the_manifests_and_small(name: str) -> None:
    files, digest, unaudited = manifest(FOLDER / name)
    assert [asdict(file) for file in files] == MODELS[name]["files"]
    assert (digest, unaudited) == (MODELS[name]["manifest_digest"], ())
    assert {path.name for path in (FOLDER / name).iterdir()} == {file.path for file in files}
    assert sum(file.bytes for file in files) < 400_000


@pytest.mark.parametrize("name", MODELS)
def test_accuracy_and_backdoor_are_as_stated(name: str) -> None:
    """On the trusted images, which neither trained the model nor gave the manifest's numbers."""
    entry = MODELS[name]
    with open_checkpoint(FOLDER / name) as checkpoint:
        assert checkpoint.preprocessor is not None
        own = from_config(checkpoint.preprocessor)
        assert own.mean is not None
        assert own.std is not None
        classifier = build(checkpoint, mean=own.mean, std=own.std)
    trusted = load_trusted(TRUSTED, preprocessing=own, labels=classifier.labels)
    assert (classifier.arch, own.size) == (entry["arch"], (16, 16))
    assert agree(
        cda(predict(classifier, trusted.images, Context()), trusted.labels), len(trusted), entry["cda_interval"]
    )
    attack = BadNets(**MODELS["vit-badnets"]["trigger"])
    others = trusted.labels != attack.target
    images, labels = trusted.images[others], trusted.labels[others]
    success = asr(predict(classifier, attack.trigger(images), Context()), labels, attack.target)
    assert asr(predict(classifier, images, Context()), labels, attack.target) < 0.05
    if entry["attack"]:
        assert success > 0.9
        assert agree(success, int(others.sum()), entry["asr_interval"])
    else:
        assert success < 0.1, "the trigger, not luck"


def agree(share: float, n: int, interval: list[float]) -> bool:
    """Do a share measured on n images and a published 95 % interval overlap?"""
    low, high = wilson(share * n, n)
    return low <= interval[1] and interval[0] <= high


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_scan(name: str, tmp_path: Path) -> None:
    out = tmp_path / "v.json"
    arguments = ["scan", str(FOLDER / name), "--trusted", str(TRUSTED), "--out", str(out), "--quiet"]
    code = run([*arguments, "--policy", "thresholds"])  # no calibration covers them
    document: dict[str, Any] = json.loads(out.read_text())
    assert violations(document, "verdict") == []
    guilty = {f["target_class"] for f in document["findings"] if f["fired"] and f["severity"] == "fail"}
    target = MODELS[name]["target"]
    expected = ("PASS", 0, set()) if target is None else ("FAIL", 1, {target})
    assert (document["verdict"], code, guilty) == expected, document["reasons"]


def test_the_recipe_and_the_manifest_agree() -> None:
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("fixtures_build_vit", FOLDER / "scripts" / "build_vit.py")
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    assert recipe.FIXTURES.keys() == MODELS.keys()
    for name, (seed, attack) in recipe.FIXTURES.items():
        assert MODELS[name]["seed"] == seed
        assert MODELS[name]["trigger"] == (asdict(attack) if attack else None)
