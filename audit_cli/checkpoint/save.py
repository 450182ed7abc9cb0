"""Writing without half-written files: a reader sees the old content of a file, or the whole new one, or nothing.

The bytes go to a temporary file in the destination's own directory (a rename is atomic only within a file system), are
flushed to the disk, and the name is switched in one step. Whatever interrupts this, the temporary file is removed.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from audit_cli.checkpoint.header import DTYPES
from audit_cli.errors import AuditError, UsageError

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, created empty, that takes the name `path` when the block ends without an error.

    Raises UsageError when `path` is something other than a regular file (a rename over `/dev/null` would destroy it) or
    its directory is missing, AuditError when the system refuses the write.
    """
    if path.exists() and not path.is_file():
        raise UsageError(f"{path}: exists and is not a regular file; give another output name")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: its folder does not exist; create it first")
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        # 0o666 lets the umask decide, as for any file a user writes; mkstemp's 0o600 would hide artefacts from CI.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise AuditError(f"{path}: cannot be written ({error.strerror}); check disk space and rights") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8, newlines untouched) to `path`; raises as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def save_weights(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write `tensors`, from any device, as a safetensors file whose bytes depend on nothing but the arguments.

    The safetensors library writes the metadata in random order, so the same weights would get another digest each time.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps every tensor aligned
    header: dict[str, object] = {"__metadata__": dict(sorted((metadata or {}).items()))} if metadata else {}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].numel() * tensors[name].element_size()
        dtype, shape = _DTYPE_NAMES[tensors[name].dtype], list(tensors[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
