"""The conversation with a Hugging Face hub: one listing, then named files at one commit, each checked on arrival.

huggingface_hub does the talking and keeps the cache, so HF_ENDPOINT, HF_HOME, proxies and the user's token, where the
environment has one, work as everywhere else. Here it says nothing, reports nothing about the user, and is not believed:
sizes are limited before and while bytes arrive, and digests are compared after that.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from audit_cli.checkpoint.hub_cache import COMMIT, cache_of
from audit_cli.errors import AuditError, CheckpointError, UsageError
from audit_cli.report.sanitise import clean
from audit_cli.types import Context

FILES_CAP = 10_000  # files in one repository
_CHUNK = 2**20  # bytes hashed between two looks at the budget


@dataclass(frozen=True)
class Listed:
    """One file as the hub lists it. size: bytes. sha256: of a large file, stored beside git. git: blob id of others."""

    size: int
    sha256: str | None
    git: str | None


@dataclass(frozen=True)
class Hub:
    """A repository at one commit. files: all it holds, by path."""

    repo: str
    commit: str
    files: Mapping[str, Listed]
    context: Context

    @classmethod
    @contextmanager
    def connect(cls, repo: str, revision: str, context: Context) -> Iterator[Hub]:
        """Resolves `revision` and lists the files. Errors of the client library, in the block too, become our own."""
        with _subdued(), _told(f"hf:{repo}@{revision}"):
            from huggingface_hub import HfApi, constants

            timeout = float(constants.HF_HUB_ETAG_TIMEOUT)
            about = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=timeout)
            commit = about.sha
            if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
                raise AuditError(f"hf:{repo}@{revision}: the hub names no commit; check HF_ENDPOINT")
            if COMMIT.fullmatch(revision) and commit != revision:
                raise AuditError(f"hf:{repo}@{revision}: the hub answers with commit {commit}; check HF_ENDPOINT")
            siblings = about.siblings or []
            if len(siblings) > FILES_CAP:
                raise CheckpointError(f"hf:{repo}@{revision}: more than {FILES_CAP} files; name a smaller repository")
            yield cls(repo, commit, {str(file.rfilename): _listed(file) for file in siblings}, context)

    def require(self, names: Sequence[str], cap: int) -> None:
        """Raises before anything is downloaded when `names` are not listed, exceed `cap` bytes or the free disk."""
        for name in names:
            if name not in self.files:
                raise CheckpointError(f"hf:{self.repo}: has no `{clean(name, 60)}`; the repository is incomplete")
            if self.files[name].size < 0:
                raise AuditError(f"hf:{self.repo}: the hub states no size for {clean(name, 60)}; check HF_ENDPOINT")
        total = sum(self.files[name].size for name in names)
        if total > cap:
            what = clean(names[-1], 60) if len(names) == 1 else "the model"
            raise CheckpointError(f"hf:{self.repo}: {what} has {total} bytes, where at most {cap} are accepted")
        place = next(path for path in [cache_of(self.repo), *cache_of(self.repo).parents] if path.is_dir())
        free = shutil.disk_usage(place).free
        missing = sum(self.files[name].size for name in names if not (self._snapshot / name).exists())
        if missing > free:
            needed = f"needs {missing / 1e9:.1f} GB and {place} has {free / 1e9:.1f} GB free"
            raise UsageError(f"hf:{self.repo}: {needed}; set HF_HOME to a larger disk")

    def fetch(self, name: str) -> Path:
        """The path of `name` in the cache, downloaded unless it is there; its bytes are what the hub lists.

        Bytes that are not are removed again when this call brought them; an older file is left for the user to judge.
        """
        from huggingface_hub import constants, hf_hub_download

        expected, blobs = self._snapshot / name, cache_of(self.repo) / "blobs"
        before = set(blobs.iterdir()) if blobs.is_dir() else set()
        fresh = not expected.exists()
        meter = _meter(f"hf:{self.repo}: {clean(name, 60)}", self.files[name].size, self.context)
        settings = {"revision": self.commit, "cache_dir": constants.HF_HUB_CACHE, "tqdm_class": meter}
        try:
            path = Path(hf_hub_download(self.repo, name, **settings))
        finally:  # older versions keep what they have got, to resume it some day
            for part in set(blobs.glob("*.incomplete")) - before:
                part.unlink(missing_ok=True)
        if path != expected:
            raise AuditError(f"hf:{self.repo}: the hub gave {clean(name, 60)} of another commit; check HF_ENDPOINT")
        real = path.resolve()
        if not self._as_listed(real, self.files[name]):
            if not fresh:
                told = "in the local cache is not what the hub lists; remove it there and try again"
                raise AuditError(f"hf:{self.repo}: {clean(name, 60)} {told}")
            path.unlink(missing_ok=True)
            if real.parent == blobs and real not in before:
                real.unlink(missing_ok=True)
            raise AuditError(f"hf:{self.repo}: {clean(name, 60)} arrived other than the hub lists it; try again")
        return path

    @property
    def _snapshot(self) -> Path:
        return cache_of(self.repo) / "snapshots" / self.commit

    def _as_listed(self, path: Path, listed: Listed) -> bool:
        """Has the file the listed size and digest? A file without any digest is as nobody lists it."""
        if path.stat().st_size != listed.size:
            return False
        # git's own id of a small file is all the hub gives for it; a config is no danger that a collision would add to
        digest = hashlib.sha256() if listed.sha256 else hashlib.sha1(b"blob %d\0" % listed.size, usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                self.context.budget.check()
        return digest.hexdigest() == (listed.sha256 or listed.git)


def _listed(file: Any) -> Listed:
    """A RepoSibling of huggingface_hub; -1 for a size that is missing or absurd."""
    size = file.lfs.size if file.lfs else file.size
    known = isinstance(size, int) and size >= 0
    return Listed(size if known else -1, file.lfs.sha256 if file.lfs else None, file.blob_id)


def _meter(where: str, size: int, context: Context) -> type:
    """A progress bar for huggingface_hub that shows nothing: it counts, and stops what exceeds the size or the budget.

    The library resumes a download that breaks off for as long as each try brings a byte; here four times the size is
    enough of that.
    """
    received = 0
    context.progress.stage(f"download {where.rpartition(' ')[2]}", max(1, size >> 20))

    class Meter:
        def __init__(self, *arguments: object, **settings: object) -> None: ...

        def __enter__(self) -> Meter:
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None: ...

        def update(self, n: int | float | None = 1) -> None:
            nonlocal received
            before, received = received, received + max(0, int(n or 0))
            if received > 4 * size + 4096:
                raise AuditError(f"{where}: the download keeps breaking off or never ends; try again later")
            context.advance((received >> 20) - (before >> 20))

        def close(self) -> None: ...

    return Meter


@contextmanager
def _subdued() -> Iterator[None]:
    """huggingface_hub without telemetry, log lines, warnings, and the second protocol by which it can download."""
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    settings: Any = constants
    wanted = {"HF_HUB_DISABLE_TELEMETRY": True, "HF_HUB_DISABLE_XET": True}
    before = {name: getattr(settings, name) for name in wanted}
    verbosity = logging.get_verbosity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.set_verbosity(logging.CRITICAL)
        for name, value in wanted.items():
            setattr(settings, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(settings, name, value)
            logging.set_verbosity(verbosity)


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Whatever the client library raises, as one line with the right exit code."""
    try:
        yield
    except AuditError:
        raise
    except Exception as error:
        status = _status(error)
        if status in (401, 403):
            told = "does not exist, or is private or gated; accept its terms and set HF_TOKEN, or check the name"
            raise UsageError(f"{name}: {told}") from error
        if status == 404:
            raise UsageError(f"{name}: no such repository or revision on the hub; check the name") from error
        cause = error.__cause__ or error  # huggingface_hub wraps what stopped it in "check your connection"
        reason = clean(f"{type(cause).__name__}: {cause}", 160)
        remedy = "try again, or name a commit that is in the local cache without --allow-download"
        raise AuditError(f"{name}: the download failed ({reason}); {remedy}") from error


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an error of huggingface_hub, which wraps some of them."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__ or error.__context__
    return None
