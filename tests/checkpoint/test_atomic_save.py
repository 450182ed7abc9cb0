"""Whole files or none."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audit_cli.checkpoint.header import read_header
from audit_cli.checkpoint.save import replacing, save_weights, write_atomically
from audit_cli.errors import AuditError, UsageError


def test_text_and_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", "é\n")
    write_atomically(tmp_path / "a.json", "é\r\n")
    assert (tmp_path / "a.json").read_bytes() == "é\r\n".encode()
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "verdict.json"
    path.write_text("old")

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_system_error_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"out\.json: cannot be written \(No space"), replacing(tmp_path / "out.json"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_devices_directories_and_missing_folders_are_refused(tmp_path: Path) -> None:
    for path in (Path("/dev/null"), tmp_path):
        with pytest.raises(UsageError, match="not a regular file"):
            write_atomically(path, "x")
    with pytest.raises(UsageError, match="does not exist"):
        write_atomically(tmp_path / "no" / "where.json", "x")


def test_weights_survive_and_the_bytes_are_reproducible(tmp_path: Path) -> None:
    tensors = {
        "z.weight": torch.randn(3, 4).t(),
        "a.half": torch.randn(5, dtype=torch.float16),
        "a.brain": torch.randn(5, dtype=torch.bfloat16),
        "a.small": torch.randn(5).to(torch.float8_e4m3fn),
        "steps": torch.tensor(7),
        "mask": torch.tensor([True, False]),
    }
    metadata = {f"key{number}": "x" for number in range(9)}
    save_weights(tmp_path / "1.safetensors", tensors, metadata)
    save_weights(tmp_path / "2.safetensors", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
    assert read_header(tmp_path / "1.safetensors", "1").metadata == metadata
    loaded = load_file(tmp_path / "1.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].float(), tensor.float())


def test_files_have_the_rights_the_umask_gives(tmp_path: Path) -> None:
    save_weights(tmp_path / "m.safetensors", {"a": torch.ones(1)})
    (tmp_path / "plain").write_text("")
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1
