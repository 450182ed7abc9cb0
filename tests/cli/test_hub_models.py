"""`hf:org/name@revision` as MODEL of the commands: exit codes, what is recorded, and a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hub_server import REPO, HubServer

from audit_cli.calibration import read
from audit_cli.classifier import Classifier
from audit_cli.cli import run
from audit_cli.detectors import DETECTORS
from audit_cli.inversion.mask import Mask
from audit_cli.resources import bundled, violations
from audit_cli.types import Context, Finding, Trigger, TrustedData

MODEL = f"hf:{REPO}"
STATED = ("--mean", "0", "--std", "1", "--quiet")
BY_THRESHOLDS = ("--policy", "thresholds")  # stubs have no calibration


@dataclass(frozen=True)
class Stub:
    """Finds the same harmless trigger for every class."""

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        parameters = {"mask": torch.zeros(1, 1, *trusted.shape[1:]), "pattern": torch.zeros(1, *trusted.shape)}
        for c in range(suspect.num_classes):
            trigger = Trigger(Mask(), parameters, c, 9.0)
            yield Finding("BD001", 1.0, "a trigger", "stub", "mask", c, str(c), trigger_norm=9.0, trigger=trigger)
        yield Finding("BD107", 0.0, "all classes", "stub", details={"searched": suspect.num_classes})


@dataclass(frozen=True)
class Comparable:
    """Scores every class, as a calibration compares them."""

    @property
    def scoring(self) -> dict[str, str]:
        return {"additive": "stub"}

    @property
    def compared(self) -> Comparable:
        return self

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        for c, name in enumerate(trusted.class_names):
            yield Finding("BD001", 1.0, "", "stub", "additive", c, name)


@pytest.fixture
def commit(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bundled clean model on the hub, a pickle beside it; the default detector is a stub."""
    monkeypatch.setitem(DETECTORS, "calibrated", Stub)
    weights = (bundled("fixtures") / "digits-clean.safetensors").read_bytes()
    return hub.push({"model.safetensors": weights, "pytorch_model.bin": b"\x80\x02."})


@pytest.fixture
def digits() -> Path:
    return bundled("fixtures") / "digits-trusted.npz"


def test_scan_and_verify(
    hub: HubServer, commit: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.json"
    scan = ["scan", f"{MODEL}@main", "--trusted", str(digits), "--out", str(out), *STATED, *BY_THRESHOLDS]
    assert run(scan) == 2
    assert hub.requests == []
    assert "not in the local cache; pass --allow-download" in capsys.readouterr().err
    assert not out.exists()
    assert run([*scan, "--allow-download"]) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    stored = json.loads(out.read_text())
    assert violations(stored, "verdict") == []
    assert stored["model"]["source"] == {"repo": REPO, "revision": "main", "commit": commit}
    assert stored["model"]["unaudited_files"] == ["pytorch_model.bin"]
    asked = len(hub.requests)
    assert run(["verify", str(out), f"{MODEL}@{commit}"]) == 0, capsys.readouterr().err
    assert run(scan) == 0
    assert json.loads(out.read_text())["model"]["source"]["commit"] == commit
    assert len(hub.requests) == asked
    hub.push({"model.safetensors": (bundled("fixtures") / "digits-blend.safetensors").read_bytes()})
    assert run(["inspect", MODEL, "--allow-download"]) == 0
    assert run(["verify", str(out), MODEL]) == 1  # what `main` means now is not what was audited


def test_repair(hub: HubServer, commit: str, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "repaired"
    arguments = ["repair", MODEL, "--trusted", str(digits), "--out", str(out), "--allow-download"]
    assert run([*arguments, *STATED, *BY_THRESHOLDS]) == 0
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in out.iterdir()) == ["evidence-before", "model.safetensors", "verdict.json"]
    assert json.loads((out / "verdict.json").read_text())["model"]["source"]["commit"] == commit


def test_calibrate_and_tune(
    hub: HubServer, commit: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("audit_cli.detectors.calibrated.Calibrated", Comparable)
    out = tmp_path / "clean.json"
    calibrate = ["calibrate", MODEL, "--trusted", str(digits), "--out", str(out), *STATED]
    assert run(calibrate) == 2
    assert not out.exists()
    assert run([*calibrate, "--allow-download"]) == 0
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((bundled("fixtures") / "digits-clean.safetensors").read_bytes())
    assert run(["calibrate", str(copy), "--trusted", str(digits), "--out", str(out), *STATED]) == 0
    assert len(read(out).models) == 1, "the same bytes"
    tune = ["tune", MODEL, "--trusted", str(digits), "--out", str(tmp_path / "t.toml"), "--timeout", "1", *STATED]
    assert run(tune) == 3, "found, and no time to poison it"


def test_inspect_names_the_commit(hub: HubServer, commit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", MODEL, "--allow-download", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["model"] == f"{MODEL}@{commit}"
    assert document["unaudited_files"] == ["pytorch_model.bin"]


@pytest.mark.parametrize(
    ("status", "cut", "code"), [(401, 1.0, 2), (403, 1.0, 2), (404, 1.0, 2), (500, 1.0, 4), (200, 0.5, 4)]
)
def test_errors_are_one_line(
    hub: HubServer, commit: str, capsys: pytest.CaptureFixture[str], status: int, cut: float, code: int
) -> None:
    hub.status, hub.cut = status, cut
    assert run(["inspect", MODEL, "--allow-download"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {MODEL}@main: ")
    assert captured.err.count("\n") == 1


def test_a_process_of_its_own(hub: HubServer, commit: str, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME as the environment sets them; nothing of the library's on the streams."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "AI_AGENT": "x", "HF_HUB_VERBOSITY": "debug"}
    command = [sys.executable, "-m", "audit_cli", "inspect", MODEL, "--allow-download"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"model      {MODEL}@{commit}\n")
    assert (tmp_path / "home" / "hub" / "models--org--net" / "snapshots" / commit / "model.safetensors").is_file()
    assert len(hub.requests) == 3  # the listing, and HEAD and GET of one file
