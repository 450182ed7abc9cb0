"""Models named as `hf:org/name@revision`: found in the local Hugging Face cache, or downloaded into it when allowed.

A revision is a name that its owner can move, so it is resolved to a commit once, and everything after that names the
commit. Nothing is fetched but safetensors weights, their index, configs and tokenizer files; a pickle or a Python file
never reaches the disk. What arrived is opened like any other model folder: it is not trusted for where it came from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

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
)
from audit_cli.checkpoint.header import HEADER_CAP
from audit_cli.checkpoint.hub_cache import cache_of, known_commit, remember
from audit_cli.errors import CheckpointError, UsageError
from audit_cli.report.sanitise import clean
from audit_cli.types import Context

PREFIX = "hf:"
DOWNLOAD_CAP = 50 * 10**9  # bytes of one model; huggingface_hub itself refuses larger files over plain HTTP
SMALL = dict.fromkeys((CONFIG, PREPROCESSOR, PROCESSOR), CONFIG_CAP)
SMALL |= dict.fromkeys((TOKENIZER, VOCABULARY, MERGES, TOKENIZER_CONFIG, SPECIAL_TOKENS), TOKENIZER_CAP)
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/-]{{0,199}}))?")


@dataclass(frozen=True)
class Origin:
    """Where a model came from. revision: as requested. commit: 40 hex digits, what the revision meant at that moment.
    unaudited: other weights files of the repository, by the hub's list; empty when the cache was used without asking.
    """

    repo: str
    revision: str
    commit: str
    unaudited: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What to pass as MODEL to get this very commit."""
        return f"{PREFIX}{self.repo}@{self.commit}"

    def record(self) -> dict[str, str]:
        """`model.source` of a verdict."""
        return {"repo": self.repo, "revision": self.revision, "commit": self.commit}


@dataclass(frozen=True)
class Located:
    """What `open_checkpoint` takes: a local path, the weights file to choose there, and where it came from."""

    path: Path
    weights: str | None = None
    origin: Origin | None = None


def locate(
    model: Path | str, weights: str | None = None, *, allow_download: bool = False, context: Context | None = None
) -> Located:
    """The local files of MODEL: a path as it is, `hf:org/name@revision` from the cache or, when allowed, from the hub.

    weights: the file to audit where the repository has several. Without `allow_download`, or under HF_HUB_OFFLINE, no
    request is made. Raises UsageError for a model that cannot be had that way, that does not exist or is closed to the
    user; CheckpointError for one without clear safetensors weights; AuditError when the network or the hub fails.
    """
    if not str(model).startswith(PREFIX):
        return Located(Path(model), weights)
    repo, revision = parse(str(model))
    if allow_download and not offline():
        return _download(repo, revision, weights, context or Context())
    return _cached(repo, revision, weights, allow_download)


def parse(text: str) -> tuple[str, str]:
    """`hf:org/name@revision` as (`org/name`, revision); without a revision, `main`. Raises UsageError."""
    match = _NAME.fullmatch(text.removeprefix(PREFIX))
    repo, revision = match.groups() if match else ("", None)
    revision = revision or "main"
    names = [repo.replace("/", "."), revision]
    if not repo or any(".." in name or "--" in name for name in names[:1]) or not _is_ref(revision):
        raise UsageError(f"{clean(text)}: not a model on the hub; expected hf:org/name or hf:org/name@revision")
    return repo, revision


def offline() -> bool:
    """Does the environment forbid requests? HF_HUB_OFFLINE, as huggingface_hub reads it."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE) or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _is_ref(revision: str) -> bool:
    """Could this be a branch, a tag or a commit? It becomes part of a path."""
    return all(part and not part.startswith(".") and not part.endswith(".") for part in revision.split("/"))


def _cached(repo: str, revision: str, weights: str | None, allow_download: bool) -> Located:
    """The model as the cache has it; no request is made."""
    name = f"{PREFIX}{repo}@{revision}"
    remedy = "HF_HUB_OFFLINE forbids the download; unset it" if allow_download else "pass --allow-download"
    folder = cache_of(repo)
    commit = known_commit(folder, revision)
    snapshot = folder / "snapshots" / (commit or "none")
    if commit is None or not snapshot.is_dir():
        raise UsageError(f"{name}: not in the local cache; {remedy}")
    names = sorted(entry.name for entry in snapshot.iterdir() if entry.is_file())
    partial = UsageError(f"{name}: only a part of it is in the local cache; {remedy}")
    chosen = weights or layout.pick(names, name)
    if chosen is None or chosen not in names:
        raise partial
    used = [chosen]
    if chosen.endswith(layout.INDEX):
        used += _shards(layout.member(snapshot, chosen))
    if not set(used) <= set(names):
        raise partial
    _refuse_rivals(names, used, weights, name)
    return Located(snapshot, chosen, Origin(repo, revision, commit))


def _download(repo: str, revision: str, weights: str | None, context: Context) -> Located:
    """The model as the hub has it, every file checked against the size and the digest the hub lists for it."""
    from audit_cli.checkpoint.download import Hub

    name = f"{PREFIX}{repo}@{revision}"
    with Hub.connect(repo, revision, context) as hub:
        top = [file for file in sorted(hub.files) if layout.bare(file)]
        chosen = weights or layout.pick(top, name)
        others = [file for file in sorted(hub.files) if layout.named_like_weights(file)]
        if chosen is None:
            raise CheckpointError(_no_weights(name, others))
        if chosen not in top or not chosen.endswith((".safetensors", layout.INDEX)):
            raise UsageError(f"{name}: has no safetensors file `{clean(chosen, 60)}`; name another with --weights")
        used = [chosen]
        if chosen.endswith(layout.INDEX):
            hub.require([chosen], HEADER_CAP)
            used += _shards(hub.fetch(chosen))
        _refuse_rivals(top, used, weights, name)
        small = [file for file in SMALL if file in top]
        for file in small:
            hub.require([file], SMALL[file])
        hub.require([*small, *used], DOWNLOAD_CAP)
        for file in [*small, *used]:  # weights last: a folder that has them has the rest
            hub.fetch(file)
    folder = cache_of(repo)
    remember(folder, revision, hub.commit)
    unaudited = tuple(file for file in others if file not in used)
    return Located(folder / "snapshots" / hub.commit, chosen, Origin(repo, revision, hub.commit, unaudited))


def _shards(index: Path) -> list[str]:
    """The weights files that the shard index at `index` names."""
    real = index.resolve()
    if real.stat().st_size > HEADER_CAP:
        raise CheckpointError(f"{clean(index.name)}: more than {HEADER_CAP} bytes; it is no shard index")
    document = strict_json.parse_object(real.read_bytes(), index.name)
    return sorted(set(layout.shards(document.get("weight_map"), index.name).values()))


def _refuse_rivals(names: Collection[str], used: Sequence[str], weights: str | None, where: str) -> None:
    """Another safetensors file at the top could be the one that gets loaded; only the user may say which it is."""
    rivals = [name for name in names if name.endswith((".safetensors", layout.INDEX)) and name not in used]
    if rivals and weights is None:
        raise CheckpointError(layout.ambiguous(where, [used[0], *rivals]))


def _no_weights(name: str, others: Sequence[str]) -> str:
    if not others:
        return f"{name}: holds no .safetensors file; name a repository that does"
    listed = clean(", ".join(others[:3]), 120) + (", …" if len(others) > 3 else "")
    remedy = f"download it yourself and convert it: audit-cli convert {clean(others[0], 60)} OUT.safetensors"
    return f"{name}: holds no .safetensors file, only {listed}; {remedy}"
