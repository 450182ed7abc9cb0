"""A private copy of the files under audit, hashed on the way in.

The owner of a checkpoint could swap a file between the moment it is hashed and the moment it is loaded. So each file is
read exactly once, into a directory only we may enter, and everything after that (parsing, loading) sees only the copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from audit_cli.checkpoint.sniff import HEAD
from audit_cli.errors import AuditError, CheckpointError, UsageError
from audit_cli.report.sanitise import clean
from audit_cli.types import FileDigest

_CHUNK = 2**20  # bytes between two calls of `check`: a millisecond or so
_RESERVE = 64 * 2**20  # bytes of free disk left for everybody else


@contextmanager
def private_directory() -> Iterator[Path]:
    """A fresh directory with mode 0700 under TMPDIR, removed with all it holds when the block ends."""
    directory = Path(tempfile.mkdtemp(prefix="audit-cli-"))
    try:
        yield directory
    finally:
        directory.chmod(0o700)
        shutil.rmtree(directory)


def open_regular(path: Path, where: str) -> int:
    """A descriptor on the regular file `path`, whose last component is no symlink. Anything else is an error.

    Without O_NONBLOCK, opening a FIFO somebody left in the directory would wait for ever.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CheckpointError(f"{clean(where)}: no such file; check the path") from error
    except OSError as error:
        raise CheckpointError(f"{clean(where)}: cannot be opened ({error.strerror}); check path and rights") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{clean(where)}: not a regular file; give a .safetensors file or a model folder")
    return descriptor


def read_head(path: Path, where: str) -> bytes:
    """The first HEAD bytes of a regular file, for the sniffer."""
    with os.fdopen(open_regular(path, where), "rb") as file:
        return file.read(HEAD)


def take(
    source: Path,
    directory: Path,
    name: str,
    *,
    cap: int | None = None,
    check: Callable[[], None] = lambda: None,
    look: Callable[[bytes, str], None] = lambda head, where: None,
) -> FileDigest:
    """Copy `source` to `directory/name`, read-only, and return its digest under `name`.

    cap: largest size accepted, bytes. check: called per chunk, may raise to stop. look: is shown the first HEAD bytes
    and the name before the rest is copied, and raises to refuse. Raises CheckpointError when the file is not regular,
    is larger than `cap` or changes its length meanwhile; UsageError when the disk under TMPDIR has no room for it.
    """
    digest = hashlib.sha256()
    copied = 0
    with os.fdopen(open_regular(source, name), "rb", buffering=0) as original:
        size = os.fstat(original.fileno()).st_size
        if cap is not None and size > cap:
            raise CheckpointError(f"{clean(name)}: {size} bytes, where at most {cap} are accepted; it is no model file")
        free = shutil.disk_usage(directory).free
        if size > free - _RESERVE:
            needed = f"{size / 1e9:.1f} GB and {directory.parent} has {free / 1e9:.1f} GB free"
            raise UsageError(f"{clean(name)}: the private copy needs {needed}; set TMPDIR to a larger disk")
        look(original.read(HEAD), name)
        original.seek(0)
        try:
            with (directory / name).open("xb") as copy:
                while (chunk := original.read(_CHUNK)) and copied <= size:
                    digest.update(chunk)
                    copy.write(chunk)
                    copied += len(chunk)
                    check()
        except OSError as error:
            raise AuditError(f"{clean(name)}: cannot be copied ({error.strerror}); check the disk") from error
    if copied != size:
        raise CheckpointError(f"{clean(name)}: changed while it was being read; stop whatever writes to it")
    (directory / name).chmod(0o400)
    return FileDigest(name, digest.hexdigest(), size)
