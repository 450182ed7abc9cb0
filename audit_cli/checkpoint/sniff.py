"""What a file is, told from its first bytes and never from its name.

A checkpoint called `model.safetensors` may be a pickle, and opening a pickle runs whatever code its author packed into
it. Nothing here opens anything: 512 bytes are compared with the signatures of the formats that carry weights.
"""

from __future__ import annotations

import re

from audit_cli.errors import CheckpointError
from audit_cli.report.sanitise import clean

HEAD = 512  # bytes that are enough for every signature below; tar's sits at 257
_PICKLE = "a pickle (or zip-packed pickle) checkpoint"
_SIGNATURES = (
    (b"PK\x03\x04", _PICKLE),  # torch.save since 1.6, npz, keras
    (b"PK\x05\x06", _PICKLE),  # an empty zip
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves"),
)
_TEXT_PICKLE = re.compile(rb"\(?[cdl](p\d*|[A-Za-z_][\w.]*)\n")  # protocol 0: `cos\nsystem\n`, `(dp0\n`, `(lp0\n`
# A safetensors file opens with a header length of under 2**24, hence five zero bytes, and a brace.
_SAFETENSORS = re.compile(rb"[\s\S]{3}\x00{5}\{")


def foreign_format(head: bytes) -> str | None:
    """The weight format that `head`, a file's first HEAD bytes, shows; None for safetensors and the rest."""
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    if starts_like_pickle(head) and not _SAFETENSORS.match(head):
        return _PICKLE
    if _TEXT_PICKLE.match(head):
        return _PICKLE
    if head[257:262] == b"ustar":
        return "a tar archive"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite file"
    if len(head) > 2 and head[0] == 0x08 and head[1] <= 0x20 and head[2] in b"\x12\x1a\x22\x3a":
        return "an ONNX file"  # protobuf: field 1 (ir_version), then producer name, version or the graph
    return None


def starts_like_pickle(head: bytes) -> bool:
    """Protocols 2 to 5 open with 0x80 and the number; so does a safetensors header of 640 bytes, among others."""
    return len(head) >= 2 and head[0] == 0x80 and 2 <= head[1] <= 5


def refuse_foreign(head: bytes, where: str) -> None:
    """Raises CheckpointError with the remedy when the file `where`, which begins with `head`, is some other format."""
    kind = foreign_format(head)
    if kind is None:
        return
    if kind == _PICKLE or "tar" in kind:
        danger = "which can run code when opened; convert it first: audit-cli convert IN OUT.safetensors"
        raise CheckpointError(f"{clean(where)} is {kind}, {danger}")
    if "LFS" in kind:
        raise CheckpointError(f"{clean(where)} is {kind}; fetch them first: git lfs pull")
    raise CheckpointError(f"{clean(where)} is {kind}; export it as safetensors first")
