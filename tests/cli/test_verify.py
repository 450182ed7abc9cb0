"""`verify`: the deploy job's question. Every way that bytes, verdict or policy can differ from what was audited."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from audit_cli.checkpoint import manifest
from audit_cli.cli import run
from audit_cli.judgement import judge
from audit_cli.policy import Policy, Waiver
from audit_cli.report import RENDERERS
from audit_cli.report.document import build_document, instant
from audit_cli.types import Finding, TrustedData, Verdict

NOW = datetime.datetime.now(datetime.UTC)
ENVIRONMENT: dict[str, object] = {
    "torch": "2.11.0",
    "python": "3.11.9",
    "device": "cpu",
    "dtype": "float32",
    "seed": 0,
    "deterministic": True,
    "threads": 1,
    "seconds": 1.0,
    "peak_memory_bytes": None,
    "stages": {},
}


def document(model: Path, score: float = 1.0, rule: str = "BD001", policy: Policy | None = None) -> dict[str, Any]:
    policy = policy or Policy.load("default")
    files, digest, unaudited = manifest(model)
    findings = [Finding(rule, score, "a finding", family="mask", target_class=0, target_name="cat")]
    trusted = TrustedData(torch.zeros(2, 3, 2, 2), torch.tensor([0, 1]), ("cat", "dog"), "d" * 64)
    judged = judge(findings, policy, digest, NOW.date())
    built = build_document(
        judged,
        policy=policy,
        arch="toy",
        files=files,
        manifest_digest=digest,
        unaudited=unaudited,
        trusted=trusted,
        accuracy=1.0,
        classes=2,
        searched=2,
        trigger_families=("mask",),
        environment=ENVIRONMENT,
        created_at=NOW,
    )
    return json.loads(RENDERERS["json"](Verdict(*judged, built)))  # type: ignore[no-any-return]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"fc.weight": torch.ones(2, 2)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def verify(tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(content: object, *options: str) -> tuple[int, str]:
        path = tmp_path / "verdict.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        code = run(["verify", str(path), str(model), *options])
        return code, capsys.readouterr().err

    return call


def test_all_good(model: Path, verify: Callable[..., tuple[int, str]]) -> None:
    code, lines = verify(document(model), "--policy", "default")
    assert code == 0, lines
    assert [line.split(":")[0] for line in lines.splitlines()] == ["ok"] * 6


def test_quiet(model: Path, verify: Callable[..., tuple[int, str]]) -> None:
    assert verify(document(model), "--quiet") == (0, "")


def test_a_single_file(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = model / "model.safetensors"
    path = tmp_path / "v.json"
    path.write_text(json.dumps(document(file)))
    assert run(["verify", str(path), str(file)]) == 0, capsys.readouterr().err


def test_other_bytes(model: Path, verify: Callable[..., tuple[int, str]]) -> None:
    stored = document(model)
    save_file({"fc.weight": torch.zeros(2, 2)}, model / "model.safetensors")
    code, lines = verify(stored)
    assert code == 1
    assert "FAIL: files: model.safetensors is not the file that was audited" in lines


def test_a_forged_manifest(model: Path, verify: Callable[..., tuple[int, str]]) -> None:
    stored = document(model)
    stored["model"]["manifest_digest"] = "0" * 64
    code, lines = verify(stored)
    assert code == 1
    assert "manifest digest differs" in lines


@pytest.mark.parametrize("change", ["added", "removed"])
def test_files_added_or_removed(model: Path, verify: Callable[..., tuple[int, str]], change: str) -> None:
    stored = document(model)
    files = stored["model"]["files"]
    if change == "added":
        files.append({"path": "more.safetensors", "sha256": "0" * 64, "bytes": 1})
    else:
        files[0]["path"] = "other.safetensors"
    code, lines = verify(stored)
    assert code == 1
    assert "FAIL: files:" in lines


def test_new_weights_beside_the_audited(model: Path, verify: Callable[..., tuple[int, str]]) -> None:
    stored = document(model)
    (model / "flax_model.msgpack").write_bytes(b"\x80")
    code, lines = verify(stored, "--weights", "model.safetensors")
    assert code == 1
    assert "FAIL: other weights: flax_model.msgpack appeared after the audit" in lines


def test_weights_the_verdict_lists_may_stay(model: Path, verify: Callable[..., tuple[int, str]]) -> None:
    stored = document(model)
    stored["model"]["unaudited_files"] = ["flax_model.msgpack"]
    (model / "flax_model.msgpack").write_bytes(b"\x80")
    assert verify(stored, "--weights", "model.safetensors")[0] == 0


def test_fail_and_inconclusive_verdicts(model: Path, verify: Callable[..., tuple[int, str]]) -> None:
    assert verify(document(model, score=9.0))[0] == 1
    assert verify(document(model, score=1.0, rule="BD101"))[0] == 3


def test_expired(model: Path, verify: Callable[..., tuple[int, str]]) -> None:
    stored = document(model)
    stored["expires_at"] = instant(NOW - datetime.timedelta(seconds=2))
    code, lines = verify(stored)
    assert code == 3
    assert "inconclusive: expiry: the verdict expired at" in lines
    stored["model"]["manifest_digest"] = "0" * 64
    assert verify(stored)[0] == 1  # a mismatch outweighs


def test_a_verdict_expires_with_the_waiver_it_rests_on(model: Path) -> None:
    _, digest, _ = manifest(model)
    finding = Finding("BD001", 9.0, "", family="mask", target_class=0)
    day = NOW.date() + datetime.timedelta(days=3)
    waiver = Waiver(digest, "BD001", finding.fingerprint(digest), "known", "someone", day)
    stored = document(model, 9.0, policy=replace(Policy.load("default"), waivers=(waiver,)))
    assert stored["verdict"] == "PASS"
    assert stored["expires_at"] == f"{day + datetime.timedelta(days=1)}T00:00:00Z"
    assert document(model)["expires_at"] == instant(NOW + datetime.timedelta(days=90))


def test_another_policy(model: Path, verify: Callable[..., tuple[int, str]]) -> None:
    code, lines = verify(document(model), "--policy", "strict")
    assert code == 1
    assert "FAIL: policy: the verdict was judged by another policy (default); scan again with strict" in lines


def test_a_policy_inside_the_model_is_refused(model: Path, verify: Callable[..., tuple[int, str]]) -> None:
    (model / "p.toml").write_text("")
    code, lines = verify(document(model), "--policy", str(model / "p.toml"))
    assert code == 2
    assert "inside the audited model" in lines


@pytest.mark.parametrize(
    "spoil",
    [
        lambda stored: "",
        lambda stored: "[]",
        lambda stored: "null",
        lambda stored: json.dumps(stored)[:-5],
        lambda stored: json.dumps(stored).replace('"seconds": 1.0', '"seconds": NaN'),
        lambda stored: json.dumps(stored).replace('"seconds": 1.0', '"seconds": 1e999'),
        lambda stored: json.dumps(stored)[:-1] + ', "verdict": "PASS"}',
        lambda stored: "[" * 100_000,
        lambda stored: stored | {"extra": 1},
        lambda stored: stored | {"schema_version": 2},
        lambda stored: stored | {"exit_code": 1},
        lambda stored: stored | {"verdict": "FAIL"},
        lambda stored: stored | {"findings": []},
        lambda stored: stored | {"reasons": []},
        lambda stored: {key: value for key, value in stored.items() if key != "model"},
        lambda stored: stored | {"model": stored["model"] | {"files": []}},
        lambda stored: stored | {"expires_at": "never"},
        lambda stored: stored | {"expires_at": "2026-13-40T00:00:00Z"},
    ],
)
def test_what_is_no_verdict(
    model: Path, verify: Callable[..., tuple[int, str]], spoil: Callable[[dict[str, Any]], object]
) -> None:
    code, lines = verify(spoil(document(model)))
    assert code == 2, lines
    assert lines.count("\n") == 1


def test_missing_verdict_and_missing_model(model: Path, tmp_path: Path) -> None:
    assert run(["verify", str(tmp_path / "none.json"), str(model)]) == 2
    path = tmp_path / "v.json"
    path.write_text(json.dumps(document(model)))
    assert run(["verify", str(path), str(tmp_path / "nothing")]) == 2


def test_a_hostile_verdict_prints_cleanly(model: Path, verify: Callable[..., tuple[int, str]]) -> None:
    stored = document(model)
    stored["reasons"] = ["\x1b[31m\n::error::x"]
    stored["policy"]["name"] = "\x1b[31m\n::error::x"
    code, lines = verify(stored, "--policy", "default")
    assert code == 0
    assert "\x1b" not in lines
    assert "::" not in lines
