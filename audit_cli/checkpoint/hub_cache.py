"""The local Hugging Face cache: where a repository lies in it, and what a revision last meant."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from audit_cli.checkpoint.save import write_atomically
from audit_cli.errors import AuditError

COMMIT = re.compile(r"[0-9a-f]{40}")


def cache_of(repo: str) -> Path:
    """The repository's folder in the local cache, whether it exists or not. HF_HOME and HF_HUB_CACHE are honoured."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve() / f"models--{repo.replace('/', '--')}"


def known_commit(folder: Path, revision: str) -> str | None:
    """What the cache last knew `revision` to mean; None when it does not know."""
    if COMMIT.fullmatch(revision):
        return revision
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (folder / "refs" / revision).read_text(encoding="ascii").strip()
        return text if COMMIT.fullmatch(text) else None
    return None


def remember(folder: Path, revision: str, commit: str) -> None:
    """Notes in the cache what the revision meant, so that it can be named without the network; a convenience only."""
    if revision == commit:
        return
    with contextlib.suppress(OSError, AuditError):
        note = folder / "refs" / revision
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, commit)
