"""From a pickle to safetensors: the only place where a pickle is ever read, by explicit request.

The file is copied privately, a restricted child process (see `unpickle`) reads the copy with the weights-only loader
and writes safetensors, and this process, which trusts the child no more than the file, checks the result with the
strict header parser before it takes its place.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from audit_cli.checkpoint import strict_json, unpickle
from audit_cli.checkpoint.header import read_header
from audit_cli.checkpoint.private import private_directory, read_head, take
from audit_cli.checkpoint.save import replacing
from audit_cli.checkpoint.sniff import foreign_format
from audit_cli.errors import BudgetExceeded, CheckpointError, UsageError
from audit_cli.report.sanitise import clean

_REPORT_CAP = 2**20  # bytes; it lists the names of dropped entries


@dataclass(frozen=True)
class Conversion:
    """What came out. key: where in the pickle the state dict was ("" for the top). prefix: taken off every name.
    dropped: entries of the state dict that are no tensors. source_sha256: of the pickle that was read.
    """

    destination: Path
    tensors: int
    key: str
    prefix: str
    dropped: tuple[str, ...]
    source_sha256: str


def convert(
    source: Path, destination: Path, *, key: str | None = None, force: bool = False, timeout: float = 600.0
) -> Conversion:
    """Write the state dict in the pickle `source` to `destination`, a `.safetensors` file.

    key: dotted path of the state dict inside the pickle, needed when there are several. force: replace `destination`.
    timeout: seconds the child may take. Raises UsageError for a bad destination, CheckpointError when the pickle asks
    for code or holds no plain state dict, BudgetExceeded when the time is up.
    """
    if not 0 < timeout < math.inf:
        raise UsageError(f"--timeout {timeout:g}: must be a positive number of seconds")
    if destination.suffix != ".safetensors":
        raise UsageError(f"{clean(str(destination))}: name the output with the suffix .safetensors")
    if (destination.exists() or destination.is_symlink()) and not force:
        raise UsageError(f"{clean(str(destination))}: exists already; pass --force to replace it")
    where = clean(str(source))
    real = source.resolve()
    kind = foreign_format(read_head(real, where))
    if kind is None or "pickle" not in kind:
        raise CheckpointError(f"{where}: is {kind or 'no pickle'}; only PyTorch pickles can be converted")
    with private_directory() as room:
        original = take(real, room, "source")
        answer = _run_child(room, key, timeout, where)
        read_head(room / "output", "the conversion of " + where)  # a regular file, not a link
        tensors = read_header(room / "output", "the conversion of " + where).tensors
        with replacing(destination) as temporary:
            shutil.copyfile(room / "output", temporary)
    return Conversion(
        destination,
        len(tensors),
        clean(str(answer.get("key", ""))),
        clean(str(answer.get("prefix", ""))),
        tuple(clean(str(name)) for name in cast(list[object], answer.get("dropped", []))),
        original.sha256,
    )


def _run_child(room: Path, key: str | None, timeout: float, where: str) -> Mapping[str, object]:
    """Run `unpickle` on `room/source` to `room/output` and return its report; raises on refusal, crash and timeout."""
    job = {
        "source": str(room / "source"),
        "output": str(room / "output"),
        "report": str(room / "report"),
        "key": key,
        "seconds": math.ceil(timeout),
    }
    # -I: no PYTHON* variables, no user site, nothing imported from the current directory.
    child = subprocess.Popen(  # noqa: S603 - our own interpreter and script, and arguments as a list
        [sys.executable, "-I", unpickle.__file__, json.dumps(job)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=room,
        env=_environment(room),
        start_new_session=True,
    )
    try:
        code = child.wait(timeout)
    except subprocess.TimeoutExpired as error:
        raise BudgetExceeded(f"{where}: not converted within {timeout:g} s; raise --timeout") from error
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    report = room / "report"
    if code != 0 or not report.is_file() or report.is_symlink() or report.stat().st_size > _REPORT_CAP:
        raise CheckpointError(
            f"{where}: refused, the reading process died (code {code}); get a safetensors file instead"
        )
    answer = strict_json.parse_object(report.read_bytes(), "the conversion report")
    if not isinstance(answer.get("ok"), dict):
        reason = clean(str(answer.get("error", "no reason given")), 400)
        remedy = "" if "--key" in reason else "; ask its publisher for safetensors or a plain state dict"
        raise CheckpointError(f"{where}: refused: {reason}{remedy}")
    return cast(Mapping[str, object], answer["ok"])


def _environment(room: Path) -> dict[str, str]:
    """No credentials, no proxies, no hooks: only what the interpreter and its libraries need to start."""
    kept = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    scrubbed = {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(room), "TMPDIR": str(room)}
    return kept | scrubbed | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
