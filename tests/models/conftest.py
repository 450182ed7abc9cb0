"""Any module as an opened checkpoint, and the data that is not ours."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audit_cli.checkpoint import Checkpoint, open_checkpoint
from audit_cli.checkpoint.save import save_weights


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Checkpoint]]:
    """opened(state, rename): the tensors, saved under renamed names and opened, until the test ends."""
    with ExitStack() as stack:

        def open_(state: Mapping[str, Tensor], rename: Callable[[str], str] = lambda name: name) -> Checkpoint:
            path = tmp_path / "m.safetensors"
            save_weights(path, {rename(name): tensor for name, tensor in state.items()}, {"format": "pt"})
            return stack.enter_context(open_checkpoint(path))

        yield open_


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """A module in eval mode whose BatchNorm statistics and scales are not at their trivial start."""

    def change(module: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for name, tensor in module.state_dict().items():
            if "running_var" in name or (tensor.ndim == 1 and "weight" in name):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif "running_mean" in name or (tensor.ndim == 1 and "bias" in name):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        return module.eval()

    return change


@pytest.fixture
def shared_data() -> Path:
    folder = os.environ.get("AUDIT_CLI_DATA")
    if not folder:
        pytest.skip("AUDIT_CLI_DATA is unset: no third-party checkpoints")
    return Path(folder)
