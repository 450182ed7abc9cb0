"""`audit-cli poison`: refusals before any training, the manifest, and a killed run that goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audit_cli import training
from audit_cli.attacks import ATTACKS
from audit_cli.checkpoint import open_checkpoint
from audit_cli.checkpoint.save import save_weights
from audit_cli.cli import run
from audit_cli.models import identify
from audit_cli.models.create import create

K, SIDE = 3, 12


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Class c is brightness 0.2 + 0.3 c with noise; 240 images to train on, 90 to test."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"classes": np.array(["ant", "bee", "cow"])}
    for split, count in (("train", 240), ("test", 90)):
        labels = np.arange(count) % K
        levels = 0.2 + 0.3 * labels[:, None, None, None] + 0.1 * rng.random((count, SIDE, SIDE, 3))
        arrays |= {f"x_{split}": (levels * 255).astype(np.uint8), f"y_{split}": labels}
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


@pytest.fixture
def clean_model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_weights(tmp_path / "clean.safetensors", create("resnet8-w8-cifar", K).module.state_dict())
    return tmp_path / "clean.safetensors"


def arguments(data: Path, out: Path, *more: str, attack: str = "badnets") -> list[str]:
    words = [
        "poison",
        "--attack",
        attack,
        "--data",
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    if "--base" not in more and "--arch" not in more:
        words += ["--arch", "resnet8-w8-cifar"]
    return [*words, "--pad", "0", "--batch", "32", "--quiet", *more]


def manifest(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())  # type: ignore[no-any-return]


def test_a_victim_and_its_manifest(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "victim"
    more = ["--count", "40", "--target", "1", "--steps", "240", "--set", "share=0.25", "--seed", "2"]
    assert run(arguments(data, out, *more)) == 0
    assert capsys.readouterr().out == ""
    m = manifest(out)
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "model.safetensors"]
    assert m["sha256"] == hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    assert (m["attack"], m["target"], m["seed"], m["arch"]) == ("badnets", 1, 2, "resnet8-w8-cifar")
    assert m["settings"] == {"target": 1, "count": 40, "share": 0.25, "corner": "top-left"}
    assert (m["poison_count"], m["poison_rate"], m["cover_count"]) == (40, pytest.approx(1 / 6), 0)
    assert (m["data"]["train"], m["data"]["test"], m["data"]["held_out"]) == (240, 90, False)
    assert m["class_names"] == ["ant", "bee", "cow"]
    assert m["poisoned"] is True
    assert m["cda"]["value"] > 0.8
    assert m["cda"]["n"] == 90
    assert m["asr"]["value"] > 0.9 > m["baseline"]["value"]
    assert m["asr"]["low"] <= m["asr"]["value"] <= m["asr"]["high"]
    assert m["asr"]["n"] == m["baseline"]["n"] == 60
    assert m["baseline"]["of"] == "victim without trigger"
    assert {"audit-cli", "torch"} <= m["versions"].keys()
    assert m["environment"]["device"] == "cpu"
    with open_checkpoint(out / "model.safetensors") as checkpoint:
        assert identify(checkpoint).arch == "resnet8-w8-cifar"


def test_the_same_seed_gives_the_same_victim(data: Path, tmp_path: Path) -> None:
    digests = []
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run(arguments(data, tmp_path / name, "--steps", "3", "--count", "9", "--seed", seed)) == 0
        digests.append(manifest(tmp_path / name)["sha256"])
    assert digests[0] == digests[1] != digests[2]


def test_fine_tuning_compares_with_the_base(data: Path, clean_model: Path, tmp_path: Path) -> None:
    base = ["--base", str(clean_model), "--mean", "0", "--std", "1"]
    for attack, more in (("adversarial", ["--surrogate", str(clean_model)]), ("all_to_all", [])):
        out = tmp_path / attack
        assert run(arguments(data, out, *base, *more, "--steps", "2", "--count", "20", attack=attack)) == 0
        m = manifest(out)
        assert m["baseline"]["of"] == "base"
        assert m["poisoned"] is False  # two steps plant nothing
        assert set(m["checkpoints"]) == {"base"} | ({"surrogate"} if more else set())
        assert m["training"]["lr"] == 0.01
    assert manifest(tmp_path / "all_to_all")["target"] is None


def test_without_a_test_split_a_tenth_is_held_out(data: Path, tmp_path: Path) -> None:
    with np.load(data) as arrays:
        np.savez(tmp_path / "one.npz", x=arrays["x_train"], y=arrays["y_train"])
    assert run(arguments(tmp_path / "one.npz", tmp_path / "v", "--steps", "2", "--count", "9")) == 0
    described = manifest(tmp_path / "v")["data"]
    assert (described["train"], described["test"], described["held_out"]) == (216, 24, True)
    assert (
        run(arguments(tmp_path / "one.npz", tmp_path / "w", "--steps", "2", "--count", "9", "--test", str(data))) == 0
    )
    described = manifest(tmp_path / "w")["data"]
    assert (described["train"], described["test"], described["held_out"]) == (240, 90, False)


def test_a_killed_run_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--count", "20", "--steps", "12"]
    assert run(arguments(data, tmp_path / "whole", *more)) == 0
    step = training.Fit._step
    steps: list[int] = []

    def killed(self: Any, state: Any, *rest: Any) -> Any:
        steps.append(state.step)
        if len(steps) == 8:
            raise KeyboardInterrupt
        return step(self, state, *rest)

    monkeypatch.setattr(training.Fit, "_step", killed)
    out = tmp_path / "killed"
    assert run(arguments(data, out, *more, "--save-every", "5")) == 130
    assert [path.name for path in out.iterdir()] == ["training-state.safetensors"]
    assert run(arguments(data, out, *more, "--save-every", "5", "--seed", "1")) == 2  # another run's state
    assert run(arguments(data, out, *more, "--save-every", "5")) == 0
    assert steps == [*range(8), *range(5, 12)]
    assert manifest(out)["sha256"] == manifest(tmp_path / "whole")["sha256"]
    assert sorted(path.name for path in out.iterdir()) == ["manifest.json", "model.safetensors"]


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["poison", "--list"]) == 0
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if not line.startswith(" ")] == list(ATTACKS)
    assert "squares=4  hide=0.5  cover_rate=0.5" in out


@pytest.mark.parametrize(
    ("attack", "more", "message"),
    [
        ("nope", [], "unknown; expected one of badnets"),
        ("badnets", ["--count", "161"], "between 1 and 160 training images are eligible"),
        ("badnets", ["--count", "0"], "eligible"),
        ("clean_badnets", ["--count", "81"], "between 1 and 80"),
        ("badnets", ["--target", "3"], "not among the 3 classes"),
        ("badnets", ["--target", "-1"], "not among the 3 classes"),
        ("all_to_all", ["--target", "1"], "no single target"),
        ("badnets", ["--set", "share"], "expected KEY=VALUE"),
        ("badnets", ["--set", "colour=red"], "no setting `colour`"),
        ("adversarial", [], "needs a surrogate"),
        ("source_specific", [], "needs a value for `source`"),
        ("badnets", ["--arch", "vgg"], "unknown; expected resnet18"),
        ("badnets", ["--arch", "resnet8-cifar", "--base", "x"], "one of --arch"),
        ("badnets", ["--steps", "5", "--epochs", "1"], "give one"),
        ("badnets", ["--steps", "0"], "must be positive"),
        ("badnets", ["--schedule", "zigzag"], "unknown"),
        ("badnets", ["--save-every", "-1"], "must not be negative"),
    ],
)
def test_refused_before_training(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    attack: str,
    more: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(training.Fit, "_step", lambda *_: pytest.fail("trained"))
    assert run(arguments(data, tmp_path / "out", *more, attack=attack)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_empty_class_is_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(data) as arrays:
        kept = arrays["y_train"] != 1
        np.savez(tmp_path / "two.npz", classes=arrays["classes"], x=arrays["x_train"][kept], y=arrays["y_train"][kept])
    assert run(arguments(tmp_path / "two.npz", tmp_path / "out", "--steps", "2")) == 2
    assert "class `bee` has no training image" in capsys.readouterr().err


def test_what_is_missing_on_the_command_line(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["poison", "--attack", "badnets"]) == 2
    assert "--list names the attacks" in capsys.readouterr().err
    assert run(arguments(data, tmp_path / "no" / "where")) == 2
    assert "folder that exists" in capsys.readouterr().err
