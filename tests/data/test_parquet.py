"""Parquet files as Hugging Face datasets are stored."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from audit_cli.data import read_images
from audit_cli.data.raw import Limits
from audit_cli.errors import DataError, UsageError

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = [0, 1, 0, 2, 1, 2]
NAMES = ["cat", "dog", "owl"]


def encoded(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


FILES = [{"bytes": encoded(pixels), "path": f"{k}.png"} for k, pixels in enumerate(PIXELS)]


def features(key: str = "label", names: Any = NAMES) -> dict[bytes, bytes]:
    told = {"image": {"_type": "Image"}, key: {"names": names, "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": told}}).encode()}


def write(path: Path, columns: dict[str, Any], metadata: dict[bytes, bytes] | None = None) -> Path:
    parquet.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=4)
    return path


def test_a_dataset_as_the_hub_stores_it(tmp_path: Path) -> None:
    raw = read_images(write(tmp_path / "test.parquet", {"image": FILES, "label": LABELS}, features()))
    assert raw.class_names == tuple(NAMES)
    assert raw.labels.tolist() == LABELS
    assert raw.labelled
    assert all((image == pixels).all() for image, pixels in zip(raw.images, PIXELS, strict=True))


def test_it_is_the_same_data_as_in_an_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PIXELS, labels=LABELS, classes=NAMES)
    table = write(tmp_path / "a.parquet", {"img": FILES, "label": LABELS}, features())
    for count in (None, 1):
        archive, stored = (read_images(path, per_class=count) for path in (tmp_path / "a.npz", table))
        assert len(stored) == (6 if count is None else 3)
        assert stored.digest == archive.digest


def test_plain_bytes_and_no_names(tmp_path: Path) -> None:
    raw = read_images(write(tmp_path / "a.parquet", {"picture": [f["bytes"] for f in FILES], "class": LABELS}))
    assert (raw.class_names, raw.labels.tolist()) == ((), LABELS)


def test_the_usual_name_is_taken_of_several(tmp_path: Path) -> None:
    columns = {"mask": FILES[::-1], "image": FILES, "id": range(6), "label": LABELS}
    raw = read_images(write(tmp_path / "a.parquet", columns, features()))
    assert raw.labels.tolist() == LABELS
    assert (raw.images[0] == PIXELS[0]).all()


def test_without_labels_where_that_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": FILES})
    assert not read_images(path, unlabelled=True).labelled
    with pytest.raises(DataError, match="no column of class indices among image; add one"):
        read_images(path)


@pytest.mark.parametrize(
    ("columns", "metadata", "said"),
    [
        ({"text": ["a"] * 6, "label": LABELS}, None, "no column of image bytes among text, label"),
        (
            {"image": FILES, "fine": LABELS, "coarse": LABELS},
            None,
            r"labels may be in several columns \(fine, coarse\)",
        ),
        ({"image": FILES, "label": [0, 1, None, 0, 1, 2]}, None, "'label' has no label in 1 rows"),
        ({"image": FILES, "label": [-1] * 6}, None, "holds values in -1..-1"),
        ({"image": FILES, "label": LABELS}, features(names=["cat"]), "has the label 2 but only 1 class names"),
        ({"image": FILES, "label": LABELS}, features(names="cats"), "has no list of at most"),
        ({"image": FILES, "label": LABELS}, features(key="other"), "'label' has damaged metadata"),
        ({"image": FILES, "label": LABELS}, {b"huggingface": b"{"}, "'label' has damaged metadata"),
        ({"image": [b"GIF89a"] * 6, "label": LABELS}, None, "row 0: not a PNG, JPEG"),
        ({"image": [b""] * 6, "label": LABELS}, None, "row 0 of column 'image' holds no image bytes"),
        ({"image": [None, *FILES[1:]], "label": LABELS}, None, "row 0 of column 'image' holds no image bytes"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, columns: Any, metadata: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_images(write(tmp_path / "a.parquet", columns, metadata))


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (Limits(entries=5), "6 rows, more than the 5 allowed"),
        (Limits(archive_bytes=100), "a row group of more than 100 bytes"),
        (Limits(images=5), "6 images, more than the 5 allowed"),
        (Limits(file_bytes=20), "row 0: larger than the 20 bytes allowed"),
        (Limits(total_bytes=100), "more than 100 bytes of pixels"),
        (Limits(classes=2), "expected class indices from 0 to 1"),
    ],
)
def test_limits(tmp_path: Path, limits: Limits, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_images(write(tmp_path / "a.parquet", {"image": FILES, "label": LABELS}), limits=limits)


def test_a_damaged_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": FILES, "label": LABELS})
    whole = path.read_bytes()
    for content in (whole[:50], b"PAR1" + bytes(100), whole[:4] + bytes(100) + whole[104:]):
        path.write_bytes(content)
        with pytest.raises(DataError):
            read_images(path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"image": FILES, "label": LABELS})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"pip install 'audit-cli\[parquet\]'"):
        read_images(path)
