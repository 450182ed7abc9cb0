"""For all tests: this folder's helper modules can be imported, and process-wide switches of torch never leak."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import HubServer, serving

torch.set_num_threads(1)  # on tensors as small as these, threads spend their time waiting for each other


@pytest.fixture(autouse=True)
def _torch_switches() -> Iterator[None]:
    """A command run in this process asks torch to be deterministic; the next test must not depend on it."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running server, and huggingface_hub pointed at it with an empty cache in `tmp_path / "cache"`."""
    from huggingface_hub import close_session, constants

    for name, value in {"HF_HUB_CACHE": "cache", "HF_TOKEN_PATH": "token"}.items():
        monkeypatch.setattr(constants, name, str(tmp_path / value))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between two tries of a download
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server
        close_session()
