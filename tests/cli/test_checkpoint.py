"""`inspect` and `convert` from the command line: exit codes, one line of error, stdout that parses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from audit_cli.checkpoint.save import save_weights
from audit_cli.cli import run


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.path}",)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that must end with exit code 2 and print nothing."""
    assert run([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.rstrip("\n").isprintable()
    return err


def test_inspect_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(tmp_path / "model.safetensors", nn.Linear(3, 2).state_dict(), {"note": "\x1b[31mred\n::error::"})
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "old.bin").write_bytes(b"x")
    assert run(["inspect", str(tmp_path), "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["arch"] is None
    assert "pass --arch" in document["remark"]
    assert (document["tensors"], document["elements"], document["dtypes"]) == (2, 8, {"F32": 2})
    assert [file["path"] for file in document["files"]] == ["model.safetensors"]
    assert document["unaudited_files"] == ["extra/old.bin"]
    assert document["metadata"]["note"].isprintable()


def test_inspect_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(
        tmp_path / "model.safetensors", nn.Linear(3, 2).state_dict(), {"a\x1b[2J\nb": "\x1b[31mred\n::error::"}
    )
    assert run(["inspect", str(tmp_path / "model.safetensors")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("model ")
    assert all(line.isprintable() for line in out.splitlines())
    assert not any(line.startswith("::") for line in out.splitlines())


def test_inspect_refuses_a_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "model.safetensors")
    line = refused(capsys, "inspect", tmp_path / "model.safetensors")
    assert "model.safetensors is a pickle (or zip-packed pickle) checkpoint, which can run code when opened" in line
    assert "audit-cli convert IN OUT.safetensors" in line
    assert not (tmp_path / "ran").exists()


def test_inspect_refuses_two_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_weights(tmp_path / "model.safetensors", nn.Linear(3, 2).state_dict())
    torch.save({}, tmp_path / "pytorch_model.bin")
    assert "--weights" in refused(capsys, "inspect", tmp_path)
    assert run(["inspect", str(tmp_path), "--weights", "model.safetensors"]) == 0


def test_convert(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "net.pth", tmp_path / "net.safetensors"
    torch.save({"net": {"module.w": torch.ones(2), "module.k": 1}, "ema": {"w": torch.ones(2)}}, source)
    assert "net, ema); choose one with --key" in refused(capsys, "convert", source, output)
    assert run(["convert", str(source), str(output), "--key", "net"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "1 tensors from `net`, prefix `module.` taken off, left out what is no tensor: module.k" in err
    assert "pass --force" in refused(capsys, "convert", source, output, "--key", "net")


def test_convert_refuses_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "net.pth")
    line = refused(capsys, "convert", tmp_path / "net.pth", tmp_path / "out.safetensors")
    assert "refused: the pickle asks for `" in line
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"]
