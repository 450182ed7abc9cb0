"""The pictures a person looks at."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from audit_cli.inversion.additive import Additive
from audit_cli.inversion.mask import Mask
from audit_cli.report import evidence
from audit_cli.report.evidence import GAP, picture, save_pictures
from audit_cli.types import NO_CLASS, Finding, Trigger, TrustedData

SIDE = 16
TILE = evidence.TILE // SIDE * SIDE  # pixels of one enlarged tile


def data(per_class: int = 6) -> TrustedData:
    """Class c is a uniform grey of (c + 1) / 10."""
    labels = torch.arange(3).repeat(per_class)
    images = ((labels + 1).float() / 10).view(-1, 1, 1, 1).expand(-1, 3, SIDE, SIDE).contiguous()
    return TrustedData(images, labels, ("ant", "bee", "cat"), "d" * 64)


def white_corner(target: int = 1) -> Trigger:
    mask, pattern = torch.full((1, 1, SIDE, SIDE), -50.0), torch.full((1, 3, SIDE, SIDE), 50.0)
    mask[..., -4:, -4:] = 50.0
    return Trigger(Mask(), {"mask": mask, "pattern": pattern}, target, 16.0)


def pixels(png: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def tile(image: NDArray[np.uint8], row: int, column: int) -> NDArray[np.uint8]:
    """One tile at its original size: every enlarged pixel is one colour."""
    y, x, scale = row * (TILE + GAP), column * (TILE + GAP), TILE // SIDE
    enlarged = image[y : y + TILE, x : x + TILE]
    small = enlarged[::scale, ::scale]
    assert np.array_equal(np.repeat(np.repeat(small, scale, 0), scale, 1), enlarged), "enlarged, not smoothed"
    return small


def test_three_rows_before_after_and_difference() -> None:
    image = pixels(picture(white_corner(), data()))
    assert image.shape == (3 * (TILE + GAP), 9 * (TILE + GAP), 3)
    for column in range(1, 9):
        clean, stamped, change = (tile(image, row, column) for row in range(3))
        assert len(np.unique(clean)) == 1
        assert np.all(stamped[-4:, -4:] == 255)
        assert np.array_equal(stamped[:-4], clean[:-4])
        assert np.all(change[:-4] == 128), "no change is mid grey"
        assert np.all(change[-4:, -4:] > 128)
    greys = {int(tile(image, 0, column)[0, 0, 0]) for column in range(1, 9)}
    assert greys == {round(255 * 0.1), round(255 * 0.3)}, "images of the other classes only"
    for row, shade in enumerate((128, 0, 255)):
        alone = tile(image, row, 0)
        assert np.all(alone[0] == shade)
        assert np.all(alone[-4:, -4:] == 255)


def test_a_trigger_that_does_nothing_has_a_picture_too() -> None:
    nothing = Trigger(Additive(), {"pattern": torch.zeros(1, 3, SIDE, SIDE)}, 0, 0.0)
    image = pixels(picture(nothing, data(per_class=1)))
    assert image.shape[1] == 3 * (TILE + GAP), "as many columns as there are images"
    assert np.all(tile(image, 2, 1) == 128)


def test_large_images_are_not_enlarged() -> None:
    large = TrustedData(torch.rand(4, 3, 130, 200), torch.tensor([0, 0, 1, 1]), ("a", "b"), "d" * 64)
    nothing = Trigger(Additive(), {"pattern": torch.zeros(1, 3, 130, 200)}, 0, 0.0)
    assert pixels(picture(nothing, large)).shape == (3 * (130 + GAP), 3 * (200 + GAP), 3)


def finding(score: float, target: int, rule: str = "BD001", family: str = "mask", trigger: bool = True) -> Finding:
    return Finding(
        rule, score, "m", family=family, target_class=target, trigger=white_corner(target) if trigger else None
    )


def test_only_the_most_suspicious_of_each_family_are_pictured(tmp_path: Path) -> None:
    findings = [
        finding(1.0, 0),
        finding(6.0, 2),
        finding(2.0, 1),
        finding(0.4, 2, rule="BD002"),
        finding(3.0, 0, family="additive"),
        Finding("BD107", 0.0, "every class was searched"),
    ]
    folder = tmp_path / "new" / "v-evidence"
    saved = save_pictures(findings, data(), folder)
    assert sorted(path.name for path in folder.iterdir()) == [
        "additive-class-0.png",
        "mask-class-1.png",
        "mask-class-2.png",
    ]
    assert [f.evidence for f in saved] == [
        None,
        "v-evidence/mask-class-2.png",
        "v-evidence/mask-class-1.png",
        "v-evidence/mask-class-2.png",
        "v-evidence/additive-class-0.png",
        None,
    ]
    assert [(f.rule_id, f.score) for f in saved] == [(f.rule_id, f.score) for f in findings]
    for name in saved[1].evidence, saved[4].evidence:
        assert pixels((folder.parent / str(name)).read_bytes()).size


def test_a_trigger_to_no_class_is_pictured_too(tmp_path: Path) -> None:
    to_a_point = Finding("BD008", 4.0, "m", family="mask", trigger=white_corner(NO_CLASS))
    (saved,) = save_pictures([to_a_point], data(), tmp_path / "e")
    assert saved.evidence == "e/mask-class-any.png"
    image = pixels((tmp_path / "e" / "mask-class-any.png").read_bytes())
    assert {int(tile(image, 0, column)[0, 0, 0]) for column in range(1, 9)} == {26, 51, 76}, "images of every class"


def test_nothing_to_show_makes_no_folder(tmp_path: Path) -> None:
    findings = [finding(6.0, 2, trigger=False), Finding("BD101", 0.1, "m")]
    assert save_pictures(findings, data(), tmp_path / "e") == findings
    assert not (tmp_path / "e").exists()


def test_a_failed_write_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(Exception, match="No space left"):
        save_pictures([finding(6.0, 2)], data(), tmp_path / "e")
    assert list((tmp_path / "e").iterdir()) == []
