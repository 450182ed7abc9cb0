"""CLIP folders from the command line: labels and prompts reach the model and the verdict, and a repair keeps them.

The detector is replaced by one that answers at once; the trained models themselves are scanned in the slow tests.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audit_cli.attacks.badnets import BadNets
from audit_cli.audit import feed
from audit_cli.checkpoint import manifest, open_checkpoint
from audit_cli.classifier import Classifier
from audit_cli.cli import run
from audit_cli.data import read_images
from audit_cli.detectors import DETECTORS
from audit_cli.mend import read_back
from audit_cli.metrics import asr, cda, predict
from audit_cli.models import Prompts, build, prompts_of
from audit_cli.policy import Policy
from audit_cli.repairs.attempt import Case
from audit_cli.resources import bundled, violations
from audit_cli.types import Context, Finding, TrustedData

FOLDER = bundled("fixtures")
CLEAN, BACKDOORED, TRUSTED = FOLDER / "clip-clean", FOLDER / "clip-badnets", FOLDER / "digits-trusted.npz"
ENTRIES: dict[str, dict[str, Any]] = json.loads((FOLDER / "manifest.json").read_text())["clip"]
BY_THRESHOLDS = ("--policy", "thresholds")  # no calibration covers them
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Silent:
    """Finds nothing in any class."""

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        yield Finding("BD001", 1.0, "a trigger", "stub", "mask", 0, "0", trigger_norm=9.0)
        yield Finding("BD107", 0.0, "all classes", "stub", details={"searched": suspect.num_classes})


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DETECTORS, "calibrated", Silent)


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trusted digits with words for class names."""
    path = tmp_path_factory.mktemp("named") / "named.npz"
    with np.load(TRUSTED) as data:
        np.savez(path, images=data["images"], labels=data["labels"], classes=np.array(DIGITS))
    return path


def scanned(out: Path, model: Path, *options: str, trusted: Path = TRUSTED) -> dict[str, Any]:
    arguments = ["scan", str(model), "--trusted", str(trusted), "--out", str(out), "--quiet", *BY_THRESHOLDS]
    assert run([*arguments, *options]) == 0
    document: dict[str, Any] = json.loads(out.read_text())
    assert violations(document, "verdict") == []
    return document


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["clip-clean", "clip-badnets"])
def test_the_fixtures_are_what_the_manifest_says(name: str) -> None:
    entry = ENTRIES[name]
    assert manifest(FOLDER / name)[1] == entry["manifest_digest"]
    with open_checkpoint(FOLDER / name) as checkpoint:
        raw = read_images(TRUSTED)
        model = build(checkpoint, class_names=raw.class_names)
        subject = feed(model, raw, checkpoint, None, Context())
    classifier, data = subject.classifier, subject.trusted
    assert cda(predict(classifier, data.images, Context()), data.labels) >= entry["cda_interval"][0] >= 0.9
    attack = BadNets(**(entry["trigger"] or ENTRIES["clip-badnets"]["trigger"]))
    others = data.labels != attack.target
    success = asr(
        predict(classifier, attack.trigger(data.images[others]), Context()), data.labels[others], attack.target
    )
    assert success >= 0.95 if entry["attack"] else success <= 0.1


@pytest.mark.usefixtures("silent")
def test_the_verdict_tells_the_prompts(tmp_path: Path) -> None:
    default = scanned(tmp_path / "v.json", CLEAN)
    names = tuple(str(digit) for digit in range(10))
    assert default["model"]["prompts"] == Prompts(names).record()
    assert default["trusted"]["accuracy"] > 0.9
    assert default["model"]["arch"] == "clip-vit-3x48-patch8-32"
    assert {file["path"] for file in default["model"]["files"]} == {
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    }
    templates = ("the number {}", "a handwritten {}")
    stated = scanned(tmp_path / "v.json", CLEAN, "--prompt", templates[0], "--prompt", templates[1])
    assert stated["model"]["prompts"] == Prompts(names, templates).record()


@pytest.mark.usefixtures("silent")
def test_labels_are_matched_to_the_names_of_the_data(
    tmp_path: Path, named: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(reversed(DIGITS)))
    words = scanned(tmp_path / "v.json", CLEAN, "--labels", str(labels), trusted=named)
    assert words["trusted"]["accuracy"] > 0.9
    assert words["model"]["prompts"] == Prompts(DIGITS[::-1]).record()
    labels.write_text("\n".join(str(digit) for digit in reversed(range(10))))
    assert scanned(tmp_path / "v.json", CLEAN, "--labels", str(labels))["trusted"]["accuracy"] > 0.9, "numbers as names"
    labels.write_text("\n".join(f"no {name}" for name in DIGITS[:5]))
    said = refused(capsys, "scan", CLEAN, "--trusted", TRUSTED, "--labels", labels)
    assert "are not among the model's labels" in said


def test_labels_are_for_clip_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in (("--prompt", "a {}"), ("--labels", tmp_path / "labels.txt")):
        (tmp_path / "labels.txt").write_text("a\nb\n")
        said = refused(capsys, "scan", FOLDER / "digits-clean.safetensors", "--trusted", TRUSTED, *options)
        assert "are for CLIP models" in said
    out = tmp_path / "fixed"
    model = FOLDER / "digits-clean.safetensors"
    assert "are for CLIP" in refused(capsys, "repair", model, "--trusted", TRUSTED, "--out", out, "--prompt", "a {}")
    assert "exactly one {}" in refused(capsys, "scan", CLEAN, "--trusted", TRUSTED, "--prompt", "a photo")
    same = tmp_path / "labels.txt"
    assert "belongs to an input" in refused(
        capsys, "scan", CLEAN, "--trusted", TRUSTED, "--labels", same, "--out", same
    )
    assert same.exists()


@pytest.mark.usefixtures("silent")
def test_a_model_that_passes_is_copied_with_its_tokenizer(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prompt = ["--prompt", "the number {}"]
    arguments = ["repair", str(CLEAN), "--trusted", str(TRUSTED), "--out", str(out), "--quiet", *BY_THRESHOLDS]
    assert run([*arguments, *prompt]) == 0
    document = json.loads((out / "verdict.json").read_text())
    assert document["model"]["prompts"]["templates"] == ["the number {}"]
    assert manifest(out)[1] == manifest(CLEAN)[1]
    assert (out / "tokenizer_config.json").is_file()


def test_what_is_read_back_has_the_same_labels_and_prompts(named: Path) -> None:
    prompts = Prompts(DIGITS, ("the number {}", "a handwritten {}"))
    context = Context()
    with open_checkpoint(BACKDOORED) as checkpoint:
        model = build(checkpoint, prompts=prompts)
        subject = feed(model, read_images(named), checkpoint, None, context)
        case = Case(
            checkpoint, subject, subject.trusted, subject.trusted, [], Policy.load("default"), [], None, context
        )
        tuned = subject.classifier.clone()
        with torch.no_grad():
            tuned.module.get_submodule("visual_projection").weight += 0.01  # type: ignore[operator]
        again = read_back(case, tuned)
    images = subject.trusted.images[:20]
    assert prompts_of(again) == prompts
    torch.testing.assert_close(again(images), tuned(images), rtol=0, atol=1e-4)
    assert not torch.allclose(again(images), subject.classifier(images), atol=1e-3)


def test_inspect_tells_family_sizes_and_tokenizer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["inspect", str(CLEAN), "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["arch"], document["remark"]) == ("clip-vit-3x48-patch8-32", None)
    assert document["text"] == "context 16 tokens, vocabulary 569, tokenizer usable"
    model = shutil.copytree(CLEAN, tmp_path / "m")
    (model / "tokenizer.json").unlink()
    assert run(["inspect", str(model)]) == 0
    assert "tokenizer unusable" in capsys.readouterr().out


def test_hostile_folders_import_nothing_and_open_no_socket(tmp_path: Path) -> None:
    """In a process of its own, where an import from the folder or a connection would leave a mark."""
    code, words = shutil.copytree(CLEAN, tmp_path / "code"), shutil.copytree(CLEAN, tmp_path / "words")
    config = json.loads((code / "config.json").read_text())
    config["text_config"]["auto_map"] = {"AutoModel": "evil.Model"}
    (code / "config.json").write_text(json.dumps(config))
    (words / "tokenizer.json").write_text('{"model": {"vocab": {"evil.py": 1}, "merges": [["a", "b"]]}}')
    (words / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["evil.T", null]}}')
    for folder in (code, words):
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    script = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        "from audit_cli.cli import run\n"
        "trusted, *models = sys.argv[1:]\n"
        "raise SystemExit(sum(run(['scan', model, '--trusted', trusted, '--quiet']) != 2 for model in models))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(TRUSTED), str(code), str(words)],
        cwd=words,
        env={**os.environ, "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = done.stderr.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["error", "error"]
    assert "auto_map" in lines[0]
    assert "tokenizer.json" in lines[1]
    assert not (tmp_path / "imported").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("clip-clean", 0), ("clip-badnets", 1)])
def test_the_fixtures_are_told_apart(name: str, code: int, tmp_path: Path) -> None:
    out = tmp_path / "v.json"
    arguments = ["scan", str(FOLDER / name), "--trusted", str(TRUSTED), "--out", str(out), "--quiet"]
    assert run([*arguments, *BY_THRESHOLDS]) == code
    guilty = {
        f["target_class"] for f in json.loads(out.read_text())["findings"] if f["rule_id"] == "BD001" and f["fired"]
    }
    assert guilty == ({ENTRIES[name]["target"]} if code else set())
