"""For all tests: this folder's helper modules can be imported, and process-wide switches of torch never leak."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

torch.set_num_threads(1)  # on tensors as small as these, threads spend their time waiting for each other


@pytest.fixture(autouse=True)
def _torch_switches() -> Iterator[None]:
    """A command run in this process asks torch to be deterministic; the next test must not depend on it."""
    yield
    torch.use_deterministic_algorithms(False)
