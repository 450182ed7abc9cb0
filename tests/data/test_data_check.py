"""`data check`: the report and its exit code."""

import json
from pathlib import Path

import numpy as np
import pytest

from audit_cli.cli import run
from audit_cli.cli.data import check as command
from audit_cli.data import RawImages
from audit_cli.data.check import check
from audit_cli.errors import DataError

X = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
Y = np.arange(20) % 2


def raw(images: object = None, labels: object = None, names: tuple[str, ...] = ("a", "b")) -> RawImages:
    return RawImages.of(list(X if images is None else images), np.array(Y if labels is None else labels), names, "data")


def problems(data: RawImages) -> str:
    return " | ".join(check(data, min_images=10).problems)


def test_sound_data() -> None:
    report = check(raw(), min_images=10)
    assert report.problems == ()
    assert report.warnings == ()
    assert report.document["per_class"] == [{"class": "a", "images": 10}, {"class": "b", "images": 10}]
    assert report.document["sizes"] == {"8x8": 20}
    assert report.document["value_range"] == [0, 255]


def test_problems() -> None:
    assert "fewer than 100: add 80" in " ".join(check(raw()).problems)
    assert "classes with fewer than 5 images: 1: b (1)" in problems(raw(X[:12], [0] * 11 + [1]))
    assert "a single class" in problems(raw(labels=[0] * 20, names=("a",)))
    conflict = X.copy()
    conflict[1] = conflict[0]
    assert "identical images under different labels: a and b (1)" in problems(raw(conflict))
    assert "pixel values in 0..1 of 255" in problems(raw(X // 128))
    assert "20 of 20 images are nearly constant" in problems(raw(np.full_like(X, 7)))


def test_warnings() -> None:
    images = [*X, X[0][:4], np.full((8, 8, 3), 9, dtype=np.uint8), X[0]]
    report = check(raw(images, [*Y, 0, 0, 0]), min_images=10)
    text = " | ".join(report.warnings)
    assert "nearly constant images: 1 (first: number 21)" in text
    assert "same class: 1" in text
    assert "2 sizes" in text
    assert report.problems == ()
    names = ("1", "10", "2")
    assert "sort differently" in " ".join(check(raw(labels=np.arange(20) % 3, names=names)).warnings)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y, classes=np.array(["a", "<script>\x1b[31m"]))
    assert command(tmp_path / "d.npz", min_images=10) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["images"] == 20
    assert "\x1b" not in document["per_class"][1]["class"]
    assert err == ""
    assert command(tmp_path / "d.npz") == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["problems"]
    assert err.startswith("problem: 20 images")
    with pytest.raises(DataError):
        command(tmp_path)


def test_json_is_ascii(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A terminal that lacks a letter would have it written as `\\xe9`, which is no JSON."""
    np.savez(tmp_path / "d.npz", x=X, y=Y, classes=np.array(["café", "猫"]))
    assert command(tmp_path / "d.npz", min_images=10) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert [row["class"] for row in json.loads(out)["per_class"]] == ["café", "猫"]


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "d.npz", x=X, y=Y)
    path = str(tmp_path / "d.npz")
    assert run(["data", "check", path, "--min-images", "10"]) == 0
    assert run(["data", "check", path]) == 3
    assert run(["data", "check", path, "--split", "train", "--per-class", "0"]) == 2
    capsys.readouterr()
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04broken")
    assert run(["data", "check", path]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
