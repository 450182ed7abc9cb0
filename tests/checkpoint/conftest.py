"""Hostile files, written byte by byte: the safetensors library would refuse to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def raw(tmp_path: Path) -> Callable[..., Path]:
    """raw(header, buffer): a file with this header (JSON document or bytes) and buffer."""

    def write(header: object, buffer: bytes = b"", *, name: str = "m.safetensors", length: int | None = None) -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / name
        path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + buffer)
        return path

    return write
