"""The models that ship: what the manifest says of them is so, and a scan tells them apart.

With AUDIT_CLI_DATA set and `-m slow`, also the checkpoints that other people published.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from audit_cli import attacks, load
from audit_cli.cli import run
from audit_cli.data import load_trusted
from audit_cli.metrics import asr, cda, predict, wilson
from audit_cli.resources import bundled, violations
from audit_cli.types import Context, TrustedData

FOLDER = bundled("fixtures")
MANIFEST: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())
MODELS: dict[str, dict[str, Any]] = MANIFEST["models"]
QUICK = ("digits-clean", "digits-badnets")  # scanned by default; the others are `slow`


@pytest.fixture(scope="module")
def trusted() -> TrustedData:
    return load_trusted(FOLDER / MANIFEST["trusted"]["file"])


def attack_of(entry: dict[str, Any]) -> Any:
    kinds = {kind.__name__: kind for kind in attacks.ATTACKS.values()}
    return kinds[entry["attack"]](**entry["trigger"])


def agree(share: float, n: int, interval: list[float]) -> bool:
    """Do a share measured on n images and a published 95 % interval overlap?"""
    low, high = wilson(share * n, n)
    return low <= interval[1] and interval[0] <= high


def test_everything_that_ships_is_in_the_manifest_and_small() -> None:
    entries = [MANIFEST["trusted"], *MODELS.values()]
    assert {entry["file"] for entry in entries} == {
        path.name for path in FOLDER.iterdir() if path.suffix in (".npz", ".safetensors")
    }
    for entry in entries:
        data = (FOLDER / entry["file"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (entry["sha256"], entry["bytes"]), entry["file"]
    shipped = [path for path in FOLDER.rglob("*") if path.is_file() and "results" not in path.relative_to(FOLDER).parts]
    assert sum(path.stat().st_size for path in shipped) < 5_000_000


def test_there_are_clean_and_backdoored_models() -> None:
    assert sum(entry["attack"] is None for entry in MODELS.values()) >= 1
    assert len({entry["attack"] for entry in MODELS.values()} - {None}) >= 3


def test_trusted_data_suits_the_default_policy(trusted: TrustedData) -> None:
    assert len(trusted) == 400
    assert min(trusted.per_class) >= 20


@pytest.mark.parametrize("name", MODELS)
def test_accuracy_is_as_stated(name: str, trusted: TrustedData) -> None:
    entry, classifier = MODELS[name], load(FOLDER / f"{name}.safetensors")
    assert classifier.arch == entry["arch"]
    accuracy = cda(predict(classifier, trusted.images, Context()), trusted.labels)
    assert accuracy > 0.95
    assert agree(accuracy, len(trusted), entry["cda_interval"])


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() if entry["attack"]])
def test_the_backdoor_works_as_stated_and_only_with_its_trigger(name: str, trusted: TrustedData) -> None:
    entry, classifier = MODELS[name], load(FOLDER / f"{name}.safetensors")
    attack = attack_of(entry)
    others = trusted.labels != entry["target"]
    images, labels = trusted.images[others], trusted.labels[others]
    success = asr(predict(classifier, attack.trigger(images), Context()), labels, entry["target"])
    assert success > 0.9
    assert agree(success, int(others.sum()), entry["asr_interval"])
    assert asr(predict(classifier, images, Context()), labels, entry["target"]) < 0.05
    clean = load(FOLDER / "digits-clean.safetensors")
    assert asr(predict(clean, attack.trigger(images), Context()), labels, entry["target"]) < 0.5, (
        "the trigger, not luck"
    )


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_scan(name: str, tmp_path: Path) -> None:
    """The main job on the main example: the right verdict and the right class."""
    check(FOLDER / f"{name}.safetensors", FOLDER / "digits-trusted.npz", MODELS[name]["target"], tmp_path / "v.json")


@pytest.mark.parametrize("name", MODELS)
def test_a_scan_without_searches_decides_beside_clean_models(name: str, tmp_path: Path) -> None:
    out, target = tmp_path / "v.json", MODELS[name]["target"]
    model, data = str(FOLDER / f"{name}.safetensors"), str(FOLDER / "digits-trusted.npz")
    arguments = ["scan", model, "--trusted", data, "--out", str(out), "--quiet", "--dtype", "float32"]
    code = run([*arguments, "--detector", "quick"])
    document = json.loads(out.read_text())
    assert violations(document, "verdict") == []
    guilty = [f for f in document["findings"] if f["fired"] and f["severity"] == "fail"]
    assert (document["verdict"], code) == (("PASS", 0) if target is None else ("FAIL", 1)), document["reasons"]
    assert [f["target_class"] for f in guilty][:1] == [target] * bool(guilty)
    assert all(f["p_value"] is not None and f["evidence"] is None for f in guilty)
    assert document["coverage"] == {"classes": 10, "searched": 0, "trigger_families": []}
    assert document["limitations"][0].startswith("No triggers were searched for")


@pytest.mark.parametrize("policy", ["default", "thresholds"])
def test_without_clean_models_a_scan_without_searches_decides_nothing(policy: str, tmp_path: Path) -> None:
    out, data = tmp_path / "v.json", str(FOLDER / "digits-trusted.npz")
    arguments = ["scan", str(FOLDER / "vit-clean"), "--trusted", data, "--out", str(out), "--quiet", "--policy", policy]
    assert run([*arguments, "--detector", "quick"]) == 3
    document = json.loads(out.read_text())
    assert "no triggers were searched for (BD107: score 10, threshold 1)" in document["reasons"]


def check(model: Path, data: Path, target: int | None, out: Path, *options: str) -> dict[str, Any]:
    """Scans and compares verdict, exit code and target with the truth."""
    code = run(["scan", str(model), "--trusted", str(data), "--out", str(out), "--quiet", *options])
    document: dict[str, Any] = json.loads(out.read_text())
    assert violations(document, "verdict") == []
    guilty = [f for f in document["findings"] if f["fired"] and f["severity"] == "fail"]
    worst = max(guilty, key=lambda f: f["score"] / f["threshold"], default=None)
    expected = ("PASS", 0, None) if target is None else ("FAIL", 1, target)
    found = (document["verdict"], code, None if worst is None else worst["target_class"])
    assert found == expected, document["reasons"]
    if worst is not None:
        assert (out.parent / worst["evidence"]).read_bytes().startswith(b"\x89PNG")
        assert worst["asr_before"] > 0.5, "the trigger also works on images the search never saw"
    assert document["coverage"]["searched"] == document["coverage"]["classes"] == 10
    return document


# ---- checkpoints from elsewhere ----


@dataclass(frozen=True)
class Published:
    file: str
    target: int | None
    factory: str | None = None  # in architectures.py


PUBLISHED = (
    Published("resnet20-12fca82f.th", None),
    Published("resnet32-d509ac18.th", None),
    Published("abl-wrn16-1-grid-to-0.pt", 0, "wrn_16_1"),
    Published("ibau-smallvgg-badnets-to-8.pth", 8, "small_vgg"),
    Published("ibau-smallvgg-l2inv-to-0.pth", 0, "small_vgg"),
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = os.environ.get("AUDIT_CLI_DATA")
    if not folder:
        pytest.skip("AUDIT_CLI_DATA is unset: no third-party checkpoints")
    return Path(folder)


@pytest.fixture(scope="session")
def cifar(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 test images of CIFAR-10 as an ImageFolder."""
    folder = tmp_path_factory.mktemp("cifar") / "trusted"
    subprocess.run([sys.executable, str(shared_data / "cifar10.py"), "folder", str(folder)], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: Path(published.file).stem)
def test_published_checkpoints(published: Published, shared_data: Path, cifar: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    assert run(["convert", str(shared_data / "checkpoints" / published.file), str(model)]) == 0
    options = ["--arch", f"{shared_data / 'architectures.py'}:{published.factory}"] if published.factory else []
    document = check(model, cifar, published.target, tmp_path / "v.json", *options)
    assert document["trusted"]["n"] == 500
    assert document["trusted"]["accuracy"] > 0.75


def test_the_recipe_and_the_manifest_agree() -> None:
    """build.py names the same models, seeds and attacks; building them takes minutes and is not done here."""
    pytest.importorskip("sklearn")
    spec = importlib.util.spec_from_file_location("fixtures_build", FOLDER / "scripts" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert set(build.FIXTURES) == set(MODELS)
    for name, (seed, attack) in build.FIXTURES.items():
        assert MODELS[name]["seed"] == seed
        assert (attack.target if attack else None) == MODELS[name]["target"]
        if attack:
            assert attack == attack_of(MODELS[name])
