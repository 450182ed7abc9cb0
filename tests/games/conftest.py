"""A bench small enough to be played in seconds: three classes told apart by brightness."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit_cli.games.config import Bench, read_bench
from audit_cli.games.data import Data, read_data
from audit_cli.games.zoo import Zoo
from audit_cli.types import Context

K, SIDE = 3, 12
BENCH = """
tier = "S"
trusted = 60
measured = 60

[training]
epochs = 3
batch = 32
pad = 0

[[network]]
arch = "resnet8-w8-cifar"
base = { epochs = 2, batch = 32, pad = 0 }

[[network]]
arch = "resnet8-w8-cifar"

[[population]]
attack = "clean"
victims = 2

[[population]]
attack = "badnets"
counts = [20, 40]
victims = 2
settings = { share = 0.25 }

[detectability]
detectors = ["calibrated"]

[robustness]
repairs = ["clean_retraining"]
victims = 1
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Class c is brightness 0.2 + 0.3 c with noise; 240 images to train on, 150 to test."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"classes": np.array(["ant", "bee", "cow"])}
    for split, count in (("train", 240), ("test", 150)):
        labels = np.arange(count) % K
        levels = 0.2 + 0.3 * labels[:, None, None, None] + 0.1 * rng.random((count, SIDE, SIDE, 3))
        arrays |= {f"x_{split}": (levels * 255).astype(np.uint8), f"y_{split}": labels}
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path / "data.npz"


@pytest.fixture
def bench_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(BENCH)
    return path


@pytest.fixture
def bench(bench_file: Path) -> Bench:
    return read_bench(bench_file)


@pytest.fixture
def images(data: Path, bench: Bench) -> Data:
    return read_data(data, bench)


@pytest.fixture
def zoo(tmp_path: Path, images: Data) -> Zoo:
    return Zoo(tmp_path / "cache", images, Context())
