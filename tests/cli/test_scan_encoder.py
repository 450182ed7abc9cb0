"""Scans of models that nobody has given classes: CLIP without labels, and images without labels."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit_cli.cli import run
from audit_cli.detectors import DETECTORS
from audit_cli.detectors.encoder import Collapse
from audit_cli.inversion.collapse import CollapseSearch
from audit_cli.resources import bundled, violations

FOLDER = bundled("fixtures")
CLEAN, BACKDOORED = FOLDER / "clip-clean", FOLDER / "clip-badnets"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector, with hardly any search."""
    search = CollapseSearch(steps=6, images=4, starts=1, collapse=0.01)
    monkeypatch.setitem(DETECTORS, "encoder", partial(Collapse, search, prototypes=3))


@pytest.fixture
def unlabelled(tmp_path: Path) -> Path:
    with np.load(FOLDER / "digits-trusted.npz") as data:
        np.savez(tmp_path / "plain.npz", images=data["images"])
        np.savez(tmp_path / "unnamed.npz", images=data["images"], labels=data["labels"])
    return tmp_path / "plain.npz"


def scanned(code: int, out: Path, *arguments: object) -> dict[str, Any]:
    assert run(["scan", *map(str, arguments), "--out", str(out), "--quiet"]) == code
    document: dict[str, Any] = json.loads(out.read_text())
    assert violations(document, "verdict") == []
    return document


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", ["plain.npz", "unnamed.npz"])
def test_a_clip_without_labels_is_scanned_as_an_encoder(tmp_path: Path, unlabelled: Path, name: str) -> None:
    document = scanned(3, tmp_path / "v.json", CLEAN, "--trusted", unlabelled.with_name(name))
    rules = {finding["rule_id"]: finding for finding in document["findings"]}
    assert set(rules) == {"BD008", "BD104", "BD105", "BD106", "BD107", "BD110", "BD111", "BD112"}
    assert rules["BD107"]["fired"], "what can only be noted passes nothing"
    assert (document["model"]["prompts"], document["trusted"]["accuracy"]) == (None, None)
    assert document["coverage"] == {"classes": 0, "searched": 0, "trigger_families": ["mask"]}
    assert (tmp_path / rules["BD008"]["evidence"]).is_file()
    assert rules["BD008"]["target_class"] is None


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("threshold", "code"), [(1e-9, 1), (1e9, 0)])
def test_a_policy_may_let_the_rule_decide(tmp_path: Path, unlabelled: Path, threshold: float, code: int) -> None:
    policy = tmp_path / "p.toml"
    rule = f'[rules.BD008]\nseverity = "fail"\nthreshold = {threshold}\n'
    policy.write_text(f'name = "ours"\nextends = "thresholds"\n{rule}')
    search = Collapse(CollapseSearch(steps=6, images=4, starts=1, collapse=0.01), prototypes=3, alike=1.0)
    DETECTORS["encoder"] = lambda: search  # undone by the fixture
    document = scanned(code, tmp_path / "v.json", CLEAN, "--trusted", unlabelled, "--policy", policy)
    assert ("BD107" in {f["rule_id"] for f in document["findings"]}) is False
    if code:
        assert document["reasons"][0].endswith(")")
        assert "BD008" in document["reasons"][0]


@pytest.mark.usefixtures("quick")
def test_any_model_can_be_measured_by_name(tmp_path: Path) -> None:
    trusted = FOLDER / "digits-trusted.npz"
    for model in (CLEAN, FOLDER / "digits-clean.safetensors"):
        document = scanned(3, tmp_path / "v.json", model, "--trusted", trusted, "--detector", "encoder")
        rules = [finding["rule_id"] for finding in document["findings"]]
        assert {"BD101", "BD008"} <= set(rules), "the whole gate comes first where there are labels"
        assert document["coverage"]["classes"] == 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([CLEAN, "--detector", "calibrated"], "has --detector encoder only"),
        ([FOLDER / "digits-clean.safetensors"], "images without labels"),
        ([CLEAN, "--prompt", "the {}"], "give them with --labels"),
        ([CLEAN, "--preprocess", "auto"], "pass --mean and --std"),
    ],
)
def test_what_does_not_go_together(
    options: list[object], said: str, unlabelled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["scan", *map(str, options), "--trusted", str(unlabelled)]) == 2
    assert said in capsys.readouterr().err


def test_a_repair_needs_labels(tmp_path: Path, unlabelled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for trusted in (unlabelled, unlabelled.with_name("unnamed.npz")):
        assert run(["repair", str(CLEAN), "--trusted", str(trusted), "--out", str(tmp_path / "o")]) == 2
        assert re.search(r"expected `images` and `labels`|--labels FILE", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "fired"), [(CLEAN, False), (BACKDOORED, True)])
def test_the_fixtures_are_told_apart(model: Path, fired: bool, tmp_path: Path, unlabelled: Path) -> None:
    document = scanned(3, tmp_path / "v.json", model, "--trusted", unlabelled)
    (finding,) = (f for f in document["findings"] if f["rule_id"] == "BD008")
    assert finding["fired"] is fired
    assert finding["details"]["collapse_of_unseen"] > 0.8
