"""The readers and the gate on real images: needs AUDIT_CLI_DATA."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from audit_cli.data import read_images
from audit_cli.data.check import check

pytestmark = pytest.mark.shared_data


@pytest.fixture(scope="module")
def pack() -> ModuleType:
    folder = os.environ.get("AUDIT_CLI_DATA")
    if not folder:
        pytest.skip("AUDIT_CLI_DATA is not set")
    spec = importlib.util.spec_from_file_location("cifar10_pack", Path(folder) / "cifar10.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_folder_and_archive_of_the_same_images_agree(pack: ModuleType, tmp_path: Path) -> None:
    x, y, classes = pack.load("test")
    chosen = np.concatenate([np.flatnonzero(y == k)[:12] for k in range(10)])
    for i in chosen:
        (tmp_path / "folder" / classes[y[i]]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[i]).save(tmp_path / "folder" / classes[y[i]] / f"{i:05d}.png")
    np.savez(tmp_path / "data.npz", x_test=x[chosen], y_test=y[chosen], classes=classes)
    folder, archive = read_images(tmp_path / "folder"), read_images(tmp_path / "data.npz")
    assert np.array_equal(np.stack(folder.images), np.stack(archive.images))
    assert folder.class_names == archive.class_names == tuple(classes)
    assert folder.digest == archive.digest
    assert check(folder).problems == ()
