"""A strict reader of the safetensors header, run before the safetensors library sees the file.

The format is an 8-byte little-endian length, a JSON header of that length, and one buffer. Everything a reader could be
misled or exhausted by is refused here: see `read_header`. Format: https://huggingface.co/docs/safetensors (2022).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from audit_cli.checkpoint import strict_json
from audit_cli.checkpoint.sniff import HEAD, refuse_foreign, starts_like_pickle
from audit_cli.errors import CheckpointError
from audit_cli.report.sanitise import clean

# About 100 bytes describe a tensor, so 16 MiB hold 160,000 of them; large models have some thousands. The cap stays
# below 2**24 so that a zip or pickle signature can never pass for a length.
HEADER_CAP = 2**24 - 1
TENSOR_CAP = 65_536  # tensors in one checkpoint; an image classifier has 60 to 3,000
NAME_CAP = 512  # characters of a tensor name
RANK_CAP = 8  # dimensions of a tensor; a convolution has 4
SIZE_CAP = 2**48  # bytes of one tensor: below any overflow, above any file

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor. dtype: a key of DTYPES. shape: () for a scalar. file: the shard it is in."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Header:
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]


def read_header(path: Path, name: str) -> Header:
    """The checked header of the safetensors file at `path`, called `name` in messages and in TensorInfo.file.

    Raises CheckpointError unless the header fits the cap and the file and is strict JSON without control characters;
    there is at least one tensor and at most TENSOR_CAP; names are printable ASCII; dtypes are in DTYPES; dimensions are
    positive integers; each tensor's byte range matches its dtype and shape; and the ranges cover the buffer exactly,
    without holes or overlaps, to the last byte of the file.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEAD)
        refuse_foreign(head, name)
        size = int.from_bytes(head[:8], "little")
        if len(head) < 10 or not 2 <= size <= min(HEADER_CAP, length - 8) or head[8:9] != b"{":
            raise _malformed(name, "it does not begin with a safetensors header")
        file.seek(8)
        raw = file.read(size)
    if re.search(rb"[\x00-\x1f\x7f]", raw):
        raise _malformed(name, "its header holds control characters")
    if starts_like_pickle(head) and not raw.isascii():
        # With neither newlines nor bytes above 0x7f no pickle can name a function; anything more could be both formats.
        raise _malformed(name, "it can be read as a pickle too")
    document = strict_json.parse_object(raw, name)
    metadata = _metadata(document.pop("__metadata__", {}), name)
    if not 1 <= len(document) <= TENSOR_CAP:
        raise _malformed(name, f"it holds {len(document)} tensors, where 1 to {TENSOR_CAP} are accepted")
    ranges: list[tuple[int, int]] = []
    tensors: dict[str, TensorInfo] = {}
    for key, entry in document.items():
        tensors[key], extent = _tensor(key, entry, name)
        ranges.append(extent)
    end = 0
    for begin, stop in sorted(ranges):
        if begin != end:
            what = "overlap" if begin < end else "leave a hole"
            raise _malformed(name, f"its tensors {what} at byte {min(begin, end)}")
        end = stop
    if end != length - 8 - size:
        raise _malformed(name, f"its tensors need {end} bytes and it holds {length - 8 - size}")
    return Header(tensors, metadata)


def _tensor(key: str, entry: object, name: str) -> tuple[TensorInfo, tuple[int, int]]:
    """One header entry, checked, with its byte range in the buffer."""
    if not re.fullmatch(rf"[\x20-\x7e]{{1,{NAME_CAP}}}", key):
        raise _malformed(name, f"tensor name `{clean(key, 60)}` is not 1 to {NAME_CAP} printable ASCII characters")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _malformed(name, f"tensor `{clean(key, 60)}` is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _malformed(name, f"tensor `{clean(key, 60)}` has dtype {clean(str(dtype), 20)}, which is not accepted")
    if not _naturals(shape) or len(shape) > RANK_CAP or 0 in shape:
        raise _malformed(name, f"tensor `{clean(key, 60)}` has a shape that is not of positive integers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise _malformed(name, f"tensor `{clean(key, 60)}` has data_offsets that are not two integers")
    info = TensorInfo(key, dtype, tuple(shape), name)
    begin, stop = offsets
    if info.bytes > SIZE_CAP or stop - begin != info.bytes:
        raise _malformed(name, f"tensor `{clean(key, 60)}` does not fill its byte range")
    return info, (begin, stop)


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _metadata(value: object, name: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise _malformed(name, "its __metadata__ is not a map of strings")
    return dict(value)


def _malformed(name: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{clean(name)}: malformed safetensors, {reason}; download it again or export it again")
