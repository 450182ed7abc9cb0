"""The strict header parser: what it accepts, and every way to be refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from audit_cli.checkpoint.header import HEADER_CAP, TENSOR_CAP, read_header
from audit_cli.errors import CheckpointError

Raw = Callable[..., Path]


def entry(shape: list[object], begin: object, end: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_accepts_what_the_library_writes(tmp_path: Path) -> None:
    dtypes = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
    tensors = {f"layer.{number}": torch.zeros(2, 3, dtype=dtype) for number, dtype in enumerate(dtypes)}
    tensors["num_batches_tracked"] = torch.tensor(7)
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt", "note": "naïve"})
    header = read_header(tmp_path / "m.safetensors", "m")
    assert {name: info.shape for name, info in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert header.tensors["num_batches_tracked"].elements == 1
    assert header.metadata == {"format": "pt", "note": "naïve"}


def test_accepts_thousands_of_tensors(raw: Raw) -> None:
    header = {f"model.layers.{n}.attention.output.weight": entry([1], n, n + 1, "U8") for n in range(20_000)}
    assert len(read_header(raw(header, bytes(20_000)), "m").tensors) == 20_000


@pytest.mark.parametrize("size", [640, 896, 1152, 1408])
def test_accepts_a_length_that_looks_like_a_pickle_protocol(raw: Raw, size: int) -> None:
    text = json.dumps({"a": entry([1], 0, 4)}).encode().ljust(size)
    assert raw(text, bytes(4)).read_bytes()[0] == 0x80
    assert list(read_header(raw(text, bytes(4)), "m").tensors) == ["a"]


def test_refuses_a_file_that_is_safetensors_and_pickle_at_once(raw: Raw) -> None:
    size = int.from_bytes(b"\x80\x02G\0\0\0\0\0", "little")  # protocol 2, then a float that swallows the length
    assert size < HEADER_CAP
    text = json.dumps({"__metadata__": {"x": "Ɠ"}, "a": entry([1], 0, 4)}, ensure_ascii=False).encode()
    with pytest.raises(CheckpointError, match="as a pickle too"):
        read_header(raw(text.ljust(size), bytes(4)), "m")


HOSTILE: dict[str, tuple[object, bytes]] = {
    "duplicate tensor": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{}}', b"x"),
    "duplicate key in a tensor": (b'{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "no tensors": ({}, b""),
    "only metadata": ({"__metadata__": {"format": "pt"}}, b""),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "a": entry([1], 0, 4)}, bytes(4)),
    "not an object": ([1, 2], b""),
    "not UTF-8": (b'{"\xff":{}}', b""),
    "byte-order mark": (b'\xef\xbb\xbf{"a":{}}', b""),
    "NaN": (b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"x"),
    "newline": (b'{\n"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', b"x"),
    "trailing text": (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}} {}', b"x"),
    "nested": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""),
    "digits": (b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,1]}}', b"x"),
    "ANSI in a name": ({"a\x1b[31m": entry([1], 0, 4)}, bytes(4)),
    "newline in a name": ({"a\n::error::": entry([1], 0, 4)}, bytes(4)),
    "surrogate in a name": ({"\ud800": entry([1], 0, 4)}, bytes(4)),
    "letter outside ASCII": ({"ä": entry([1], 0, 4)}, bytes(4)),
    "empty name": ({"": entry([1], 0, 4)}, bytes(4)),
    "long name": ({"a" * 513: entry([1], 0, 4)}, bytes(4)),
    "extra field": ({"a": entry([1], 0, 4) | {"strides": [1]}}, bytes(4)),
    "missing field": ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
    "unknown dtype": ({"a": entry([1], 0, 4, "F4")}, bytes(4)),
    "dtype is a list": ({"a": entry([1], 0, 4, ["F32"])}, bytes(4)),
    "zero-size tensor": ({"a": entry([0], 0, 0)}, b""),
    "zero-size with a huge side": ({"a": entry([0, 2**62], 0, 0)}, b""),
    "overflowing shape": ({"a": entry([2**32, 2**32], 0, 0)}, b""),
    "huge shape": ({"a": entry([2**61], 0, 2**63)}, bytes(4)),
    "negative side": ({"a": entry([-1], 0, 4)}, bytes(4)),
    "float side": ({"a": entry([1.0], 0, 4)}, bytes(4)),
    "boolean side": ({"a": entry([True], 0, 4)}, bytes(4)),
    "too many dimensions": ({"a": entry([1] * 9, 0, 4)}, bytes(4)),
    "negative offset": ({"a": entry([1], -4, 0)}, bytes(4)),
    "three offsets": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4)),
    "range too short": ({"a": entry([2], 0, 4)}, bytes(4)),
    "overlap": ({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, bytes(6)),
    "same range twice": ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)),
    "hole": ({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
    "does not start at 0": ({"a": entry([1], 4, 8)}, bytes(8)),
    "trailing bytes": ({"a": entry([1], 0, 4)}, bytes(5)),
    "truncated": ({"a": entry([1], 0, 4)}, bytes(3)),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_refuses(raw: Raw, case: str) -> None:
    header, buffer = HOSTILE[case]
    with pytest.raises(CheckpointError, match=r"m\.safetensors: .+; (download|export)") as caught:
        read_header(raw(header, buffer), "m.safetensors")
    message = str(caught.value)
    assert len(message) < 400
    assert message.isprintable()


def test_refuses_too_many_tensors(raw: Raw) -> None:
    header = {f"{n}": entry([1], n, n + 1, "U8") for n in range(TENSOR_CAP + 1)}
    with pytest.raises(CheckpointError, match="65537 tensors"):
        read_header(raw(header, bytes(TENSOR_CAP + 1)), "m")


@pytest.mark.parametrize("length", [0, 1, 2**24, 2**62, 2**64 - 1])
def test_refuses_a_length_beyond_cap_or_file(raw: Raw, length: int) -> None:
    with pytest.raises(CheckpointError, match="does not begin with a safetensors header"):
        read_header(raw({"a": entry([1], 0, 4)}, bytes(4), length=length), "m")


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 2), b"<!DOCTYPE html><html>"])
def test_refuses_what_is_no_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not begin with a safetensors header"):
        read_header(path, "m")


def test_a_repeated_key_among_millions_is_found_at_once(raw: Raw) -> None:
    keys = ",".join(f'"{n:x}":0' for n in range(200_000)) + ',"1":0'
    with pytest.raises(CheckpointError, match="appears twice"):
        read_header(raw(f"{{{keys}}}".encode()), "m")
