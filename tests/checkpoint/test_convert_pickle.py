"""The only door for pickles: what comes through, what is refused, and that nothing is executed."""

from __future__ import annotations

import os
import pickle
import time
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audit_cli.checkpoint import open_checkpoint, unpickle
from audit_cli.checkpoint.convert import convert
from audit_cli.checkpoint.save import save_weights
from audit_cli.errors import BudgetExceeded, CheckpointError, UsageError


class Payload:
    """Creates a file when it is unpickled by a loader that runs what it is told."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_runs_nowhere(tmp_path: Path) -> None:
    mark, source, output = tmp_path / "ran", tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    torch.save({"state_dict": {"w": torch.ones(2), "x": Payload(mark)}}, source)
    with pytest.raises(CheckpointError, match="run code"), open_checkpoint(source):
        pass
    with pytest.raises(
        CheckpointError, match=r"refused: the pickle asks for `\w+\.system`, which weights-only"
    ) as caught:
        convert(source, output)
    assert str(caught.value).isprintable()
    assert not mark.exists()
    assert not output.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.safetensors"]


def test_a_training_checkpoint_round_trip(tmp_path: Path) -> None:
    weight = torch.randn(3, 4)
    state = OrderedDict({"module.a": weight.t(), "module.tied": weight, "module.steps": torch.tensor(5), "module.x": 3})
    source, output = tmp_path / "net.pth", tmp_path / "net.safetensors"
    optimizer = {"state": {0: {"momentum_buffer": weight}}, "param_groups": []}
    torch.save({"epoch": 4, "best": torch.tensor(0.9), "state_dict": state, "optimizer": optimizer}, source)
    done = convert(source, output)
    assert (done.tensors, done.key, done.prefix, done.dropped) == (3, "state_dict", "module.", ("module.x",))
    loaded = load_file(output)
    assert torch.equal(loaded["a"], weight.t())
    assert torch.equal(loaded["tied"], weight)
    assert loaded["steps"] == 5
    with open_checkpoint(output) as checkpoint:
        assert checkpoint.metadata == {"format": "pt"}
    with pytest.raises(UsageError, match="pass --force"):
        convert(source, output)


def test_destination_and_source_are_checked_first(tmp_path: Path) -> None:
    save_weights(tmp_path / "net.safetensors", {"w": torch.ones(1)})
    with pytest.raises(UsageError, match=r"suffix \.safetensors"):
        convert(tmp_path / "net.pth", tmp_path / "net.bin")
    with pytest.raises(CheckpointError, match="no such file"):
        convert(tmp_path / "net.pth", tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="is no pickle"):
        convert(tmp_path / "net.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(UsageError, match="timeout"):
        convert(tmp_path / "net.safetensors", tmp_path / "out.safetensors", timeout=float("nan"))


def test_the_time_limit(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "net.pth")
    began = time.monotonic()
    with pytest.raises(BudgetExceeded, match="raise --timeout"):
        convert(tmp_path / "net.pth", tmp_path / "out.safetensors", timeout=0.05)
    assert time.monotonic() - began < 5


def test_a_plain_pickle_is_refused_by_the_child(tmp_path: Path) -> None:
    (tmp_path / "net.pkl").write_bytes(pickle.dumps(Payload(tmp_path / "ran"), 2))
    with pytest.raises(CheckpointError, match="refused: "):
        convert(tmp_path / "net.pkl", tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.pkl"]


# What the child decides is tested in this process: starting one takes seconds.

W = {"w": torch.ones(2)}


@pytest.mark.parametrize(
    ("loaded", "key", "found"),
    [
        (W, None, ""),
        ({"net": W, "epoch": 3}, None, "net"),
        ({"model": {"state_dict": W}}, None, "model.state_dict"),
        ({"model": W, "ema": W}, "ema", "ema"),
        ({"model": W, "accuracy": torch.tensor(0.9)}, None, "model"),
        ({"model": W, "optimizer": W}, None, "model"),
    ],
)
def test_where_the_state_dict_is(loaded: object, key: str | None, found: str) -> None:
    assert unpickle._state_dict(loaded, key) == (W, found)


@pytest.mark.parametrize(
    ("loaded", "key", "reason"),
    [
        ([1], None, "holds a list"),
        ({"epoch": 1}, None, "no tensors"),
        ({"model": W, "ema": W}, None, r"several state dicts are in it \(model, ema\); choose one with --key"),
        ({"model": W, "w": torch.ones(2)}, None, r"\(top level\), model"),
        ({"model": W}, "net", "under `net`; those with tensors are: model"),
    ],
)
def test_no_state_dict_or_several(loaded: object, key: str | None, reason: str) -> None:
    with pytest.raises(unpickle.Refused, match=reason):
        unpickle._state_dict(loaded, key)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2).to_sparse(), torch.ones(2, dtype=torch.complex64), torch.empty(2, device="meta")],
    ids=["sparse", "complex", "meta"],
)
def test_tensors_without_plain_data(tensor: torch.Tensor) -> None:
    with pytest.raises(unpickle.Refused, match="tensor `w`"):
        unpickle._clean({"w": tensor}, 2**20)


def test_a_view_that_claims_terabytes() -> None:
    with pytest.raises(unpickle.Refused, match="far larger than the file"):
        unpickle._clean({"w": torch.ones(1).expand(10**6, 10**6)}, 2**20)
