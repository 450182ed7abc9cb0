"""What a repair leaves behind: a folder that can take the place of the model's, or nothing.

The folder is built under a temporary name beside its destination and gets its real name in one step at the very end, so
a run that is killed leaves no weights anybody could take for repaired ones.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from audit_cli.checkpoint import Checkpoint, layout
from audit_cli.checkpoint.private import read_head, take
from audit_cli.checkpoint.save import save_weights
from audit_cli.checkpoint.sniff import foreign_format
from audit_cli.classifier import Classifier
from audit_cli.errors import AuditError, CheckpointError, UsageError
from audit_cli.models import state_for_checkpoint

CARRIED = (".json", ".txt", ".md", ".model", ".jinja", "")  # configs, vocabularies, licences; no code, no weights
CARRIED_CAP = 64 * 2**20  # bytes of one such file: tokenizers are the largest
README, VERDICT = "README.md", "verdict.json"
EVIDENCE, EVIDENCE_BEFORE = "evidence", "evidence-before"
WRITTEN = frozenset({VERDICT, EVIDENCE, EVIDENCE_BEFORE})  # by a repair itself


@contextmanager
def staged(destination: Path) -> Iterator[Path]:
    """A fresh folder that becomes `destination` when the block ends without an error, and vanishes otherwise.

    Raises UsageError when there is something at `destination` other than an empty folder.
    """
    check_destination(destination)
    temporary = destination.with_name(f".{destination.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _flush(path)
        temporary.rename(destination)
        _flush(destination.parent)
    except OSError as error:
        raise AuditError(f"{destination}: cannot be written ({error.strerror}); check disk space and rights") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_destination(destination: Path) -> None:
    """Told before any work: the destination must be free, and its parent must exist. A mount point or the current
    folder could not be replaced at the end."""
    if not destination.name or os.path.ismount(destination):
        raise UsageError(f"{destination}: cannot be replaced as a whole; give a new folder below it")
    if not destination.parent.is_dir():
        raise UsageError(f"{destination}: its parent folder does not exist; create it first")
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise UsageError(f"{destination}: exists and is not a folder; give another --out")
    if destination.exists() and any(destination.iterdir()):
        raise UsageError(f"{destination}: is not empty; give a new folder, or remove this one first")


def write_model(checkpoint: Checkpoint, classifier: Classifier, folder: Path) -> None:
    """The classifier's weights under the checkpoint's file names, tensor names, dtypes and metadata."""
    state = checkpoint.load() | state_for_checkpoint(classifier, checkpoint)
    for file in sorted({info.file for info in checkpoint.tensors.values()}):
        part = {name: state[name] for name, info in checkpoint.tensors.items() if info.file == file}
        save_weights(folder / file, part, checkpoint.metadata)


def copy_model(checkpoint: Checkpoint, folder: Path) -> None:
    """The weights as they are, byte for byte."""
    _copy(checkpoint, folder, {info.file for info in checkpoint.tensors.values()})


def copy_configs(checkpoint: Checkpoint, folder: Path) -> None:
    """What was audited beside the weights: configs and the shard index, unchanged."""
    weights = {info.file for info in checkpoint.tensors.values()}
    _copy(checkpoint, folder, {file.path for file in checkpoint.files} - weights)


def carried(checkpoint: Checkpoint) -> list[str]:
    """The small files of the model folder that are no weights and no code, by name; those that were audited left out.

    Raises CheckpointError where one is a link out of the folder: better before a repair than after it."""
    if not checkpoint.source.is_dir():
        return []
    root, names = checkpoint.source.resolve(), []
    with os.scandir(root) as entries:
        found = sorted(entry.name for entry in entries if entry.is_file())
    for name in found:
        if name in {file.path for file in checkpoint.files} | WRITTEN or not _small(name):
            continue
        source = layout.member(root, name)
        if source.stat().st_size <= CARRIED_CAP and foreign_format(read_head(source, name)) is None:
            names.append(name)
    return names


def carry_over(checkpoint: Checkpoint, folder: Path) -> None:
    """Copies what was audited beside the weights, unchanged, and the `carried` files."""
    copy_configs(checkpoint, folder)
    for name in carried(checkpoint):
        take(layout.member(checkpoint.source.resolve(), name), folder, name, cap=CARRIED_CAP)
        (folder / name).chmod(0o644)


def model_card(existing: Path, method: str, origin: str, rows: str, verdict: str) -> str:
    """The model's own card, where it has one, with a section about the repair."""
    card = existing.read_text(encoding="utf-8", errors="replace").rstrip() + "\n\n" if existing.is_file() else ""
    return card + (
        "## Repair\n\n"
        f"These weights were repaired by audit-cli ({method}) from the model with manifest digest `{origin}`.\n\n"
        "| on held-out trusted images | before | after |\n|---|---|---|\n"
        f"{rows}\n\n"
        f"Verdict of the audit afterwards: {verdict}. `{VERDICT}` holds it, its limits and the digests; "
        f"`audit-cli verify {VERDICT} .` compares them. A passed audit says that no backdoor was found within its "
        "scope, not that there is none.\n"
    )


def _small(name: str) -> bool:
    """By name: a config, a vocabulary or a licence, not hidden, and not the index of other weights."""
    named = layout.bare(name) and not name.startswith(".") and not name.endswith(layout.INDEX)
    return named and Path(name).suffix.lower() in CARRIED


def _copy(checkpoint: Checkpoint, folder: Path, names: set[str]) -> None:
    """Audited files from where they came, provided that they are still what was audited."""
    root = checkpoint.source.resolve()
    digests = {file.path: file for file in checkpoint.files}
    for name in sorted(names):
        source = layout.member(root, name) if checkpoint.source.is_dir() else root
        if take(source, folder, name) != digests[name]:
            raise CheckpointError(f"{name}: changed during the repair; stop whatever writes to it and repair again")
        (folder / name).chmod(0o644)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
