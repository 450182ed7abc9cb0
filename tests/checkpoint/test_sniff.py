"""Formats are told by content; the suffix is what an attacker chooses first."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from audit_cli.checkpoint import open_checkpoint
from audit_cli.errors import CheckpointError


def torch_file(zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def tar_file() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    return file.getvalue()


def zip_file() -> bytes:
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").close()
    return file.getvalue()


PICKLES = {
    "torch zip": torch_file(True),
    "torch legacy": torch_file(False),
    "empty zip": zip_file(),
    **{f"protocol {number}": pickle.dumps({"a": [1, 2]}, number) for number in (2, 3, 4, 5)},
    "protocol 0": pickle.dumps({"a": 1}, 0),
    "protocol 0 global": b"cos\nsystem\n(S'true'\ntR.",
    "tar": tar_file(),
}
OTHERS = {
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "GGUF": b"GGUF\x03\0\0\0" + bytes(100),
    "ONNX": b"\x08\x07\x12\x07pytorch" + bytes(100),
    "gzip": gzip.compress(b"hello"),
    "LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "NumPy": b"\x93NUMPY\x01\0" + bytes(100),
    "Lite": b"\x1c\0\0\0TFL3" + bytes(100),
}


@pytest.mark.parametrize("case", PICKLES)
def test_pickles_are_refused_under_any_name(tmp_path: Path, case: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(PICKLES[case])
    with (
        pytest.raises(CheckpointError, match=r"model\.safetensors is .*run code.*audit-cli convert"),
        open_checkpoint(path),
    ):
        pass


@pytest.mark.parametrize("case", OTHERS)
def test_other_formats_are_named(tmp_path: Path, case: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(OTHERS[case])
    with pytest.raises(CheckpointError, match=rf"model\.safetensors is an? .*{case}") as caught, open_checkpoint(path):
        pass
    assert str(caught.value).count("\n") == 0
