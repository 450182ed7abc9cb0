"""Opening a checkpoint: copy privately while hashing, check every header, and only then offer the tensors.

Order matters. The file that names other files (the shard index) is copied and checked first, then the configs and, for
a model with a text side, its tokenizer, then the weights; headers are parsed from the copy; index and headers must
agree tensor by tensor. Nothing is allocated until somebody calls `Checkpoint.load`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from audit_cli.checkpoint import layout, strict_json
from audit_cli.checkpoint.config import (
    CONFIG,
    CONFIG_CAP,
    MERGES,
    PREPROCESSOR,
    PROCESSOR,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZER_CAP,
    TOKENIZER_CONFIG,
    VOCABULARY,
    image_processor,
    read_config,
)
from audit_cli.checkpoint.header import DTYPES, HEADER_CAP, TENSOR_CAP, Header, TensorInfo, read_header
from audit_cli.checkpoint.hub import Origin
from audit_cli.checkpoint.private import private_directory, take
from audit_cli.checkpoint.sniff import refuse_foreign
from audit_cli.errors import CheckpointError
from audit_cli.report.sanitise import clean
from audit_cli.types import FileDigest


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint, usable while its `open_checkpoint` block lasts.

    source: the path the user gave. files: what was audited, sorted by path. manifest_digest: see `manifest_of`.
    unaudited: other weights files in the folder. tensors: from the headers. config, preprocessor: strict JSON, or None.
    metadata: the string map of the safetensors headers. total_bytes: of all tensors. origin: None for a local model.
    preprocessor_file: where `preprocessor` was read.
    """

    source: Path
    files: tuple[FileDigest, ...]
    manifest_digest: str
    unaudited: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]
    config: Mapping[str, object] | None
    preprocessor: Mapping[str, object] | None
    metadata: Mapping[str, str]
    total_bytes: int
    _copy: Path
    origin: Origin | None = None
    preprocessor_file: str = PREPROCESSOR

    def read(self, name: str) -> bytes | None:
        """The audited config or tokenizer file `name`, from the private copy; None when there is none."""
        return (self._copy / name).read_bytes() if any(file.path == name for file in self.files) else None

    def load(self) -> dict[str, Tensor]:
        """Every tensor by name, on the CPU in its stored dtype, from the private copy."""
        loaded: dict[str, Tensor] = {}
        for file in sorted({info.file for info in self.tensors.values()}):
            try:
                loaded |= load_file(self._copy / file)
            except SafetensorError as error:
                reason = clean(str(error), 120)
                raise CheckpointError(f"{clean(file)}: refused by safetensors ({reason}); export it again") from error
        for name, info in self.tensors.items():
            if name not in loaded or (loaded[name].dtype, loaded[name].shape) != (DTYPES[info.dtype], info.shape):
                raise CheckpointError(f"{clean(info.file)}: `{clean(name, 60)}` loads as other than its header says")
        return loaded


@contextmanager
def open_checkpoint(
    path: Path,
    *,
    weights: str | None = None,
    check: Callable[[], None] = lambda: None,
    origin: Origin | None = None,
) -> Iterator[Checkpoint]:
    """The checkpoint at `path`: a `.safetensors` file or a model folder.

    weights: name of the file (or shard index) to take when the folder holds several. check: called per copied MiB; may
    raise to stop. origin: where the files were downloaded from, kept with the rest. Raises CheckpointError for whatever
    is malformed, hostile or ambiguous, before any of it is used.
    """
    found = layout.find(path, weights)
    with private_directory() as copy:
        files: list[FileDigest] = []

        def bring(name: str, *, cap: int | None = None, sniff: bool = True) -> Path:
            source = path.resolve() if found.single else layout.member(found.root, name)
            look = refuse_foreign if sniff else lambda head, where: None
            files.append(take(source, copy, name, cap=cap, check=check, look=look))
            return copy / name

        index: Mapping[str, str] | None = None
        if found.sharded:
            document = strict_json.parse_object(bring(found.weights, cap=HEADER_CAP).read_bytes(), found.weights)
            index = layout.shards(document.get("weight_map"), found.weights)
        names = sorted(set(index.values())) if index else [found.weights]
        unaudited = () if found.single else layout.unaudited(found, names, named=weights is not None)
        configs: dict[str, Mapping[str, object]] = {}
        if not found.single:
            for name in (CONFIG, PREPROCESSOR, PROCESSOR):
                if _lies_in(found.root, name):
                    configs[name] = read_config(bring(name, cap=CONFIG_CAP), name)
            has_text = any(key.startswith("text_config") for key in configs.get(CONFIG, ()))
            for name in (TOKENIZER, VOCABULARY, MERGES, TOKENIZER_CONFIG, SPECIAL_TOKENS) if has_text else ():
                if _lies_in(found.root, name):
                    bring(name, cap=TOKENIZER_CAP)
        preprocessor, preprocessor_file = image_processor(configs)
        headers = {name: read_header(bring(name), name) for name in names}
        tensors = _merge(headers)
        if index is not None:
            _agree(index, tensors, found.weights)
        copy.chmod(0o500)
        yield Checkpoint(
            source=path,
            files=tuple(sorted(files, key=lambda file: file.path)),
            manifest_digest=manifest_of(files),
            unaudited=tuple(sorted({*unaudited, *origin.unaudited})) if origin else unaudited,
            tensors=tensors,
            config=configs.get(CONFIG),
            preprocessor=preprocessor,
            metadata={key: text for header in headers.values() for key, text in header.metadata.items()},
            total_bytes=sum(info.bytes for info in tensors.values()),
            _copy=copy,
            origin=origin,
            preprocessor_file=preprocessor_file,
        )


def _lies_in(root: Path, name: str) -> bool:
    return (root / name).is_symlink() or (root / name).exists()


def manifest(path: Path, weights: str | None = None) -> tuple[tuple[FileDigest, ...], str, tuple[str, ...]]:
    """Files, manifest digest and unaudited files of the checkpoint at `path`: checked as for an audit, not loaded."""
    with open_checkpoint(path, weights=weights) as checkpoint:
        return checkpoint.files, checkpoint.manifest_digest, checkpoint.unaudited


def manifest_of(files: Sequence[FileDigest]) -> str:
    """sha256 over one line `path TAB sha256 TAB bytes LF` per file, sorted by path."""
    lines = sorted(f"{file.path}\t{file.sha256}\t{file.bytes}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _merge(headers: Mapping[str, Header]) -> dict[str, TensorInfo]:
    """The tensors of all shards; a name in two of them would make the order of loading decide."""
    tensors: dict[str, TensorInfo] = {}
    for file, header in headers.items():
        for name, info in header.tensors.items():
            if name in tensors:
                both = f"{clean(tensors[name].file)} and {clean(file)}"
                raise CheckpointError(f"`{clean(name, 60)}` is in both {both}; export the checkpoint again")
            tensors[name] = info
    if len(tensors) > TENSOR_CAP:
        raise CheckpointError(f"{len(tensors)} tensors in all shards, where at most {TENSOR_CAP} are accepted")
    return tensors


def _agree(index: Mapping[str, str], tensors: Mapping[str, TensorInfo], where: str) -> None:
    """The index and the shard headers must list the same tensors in the same files."""
    for name in sorted(index.keys() | tensors.keys()):
        listed, actual = index.get(name), tensors[name].file if name in tensors else None
        if listed != actual:
            raise CheckpointError(
                f"{clean(where)}: puts `{clean(name, 60)}` in {clean(str(listed))}, the shards have it in"
                f" {clean(str(actual))}; export the checkpoint again"
            )
