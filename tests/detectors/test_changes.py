"""Random changes of clean images: what each does, and that it leaves images behind."""

from __future__ import annotations

import math

import pytest
import torch

from audit_cli.detectors.changes import CHANGES, WAVES, Bank, Change, Flow, Noise, Patch, PlaneWave, Reflection, blurred

EACH = [change for change in CHANGES if not isinstance(change, Bank)] + list(WAVES.parts)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("change", EACH, ids=lambda change: change.name)
def test_images_come_back_changed_the_same_for_the_same_seed(change: Change) -> None:
    images = torch.rand(70, 3, 12, 12, generator=drawn(1))
    before = images.clone()
    changed = change(images, drawn())
    assert changed.shape == images.shape
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert torch.equal(images, before)
    assert torch.equal(changed, change(images, drawn()))
    assert not torch.equal(changed, change(images, drawn(2)))


def test_noise_is_as_strong_as_it_says() -> None:
    grey = torch.full((4, 3, 64, 64), 0.5)
    assert float((Noise(0.03)(grey, drawn()) - grey).std()) == pytest.approx(0.03, rel=0.05)


def test_a_reflection_is_another_image_out_of_focus() -> None:
    """Two images, one black with a white point: what they are given is each other or themselves, blurred."""
    images = torch.zeros(2, 3, 12, 12)
    images[1, :, 6, 6] = 1.0
    given = Reflection(0.5)(images, drawn()) - images
    lit = given.flatten(1).amax(1) > 0
    assert int(lit.sum()) == 1
    spread = given[lit][0]
    spread[:, 6, 6] = spread[:, 5, 5]  # there the point itself is at its largest already, if it is its own reflection
    assert float(spread.sum()) == pytest.approx(3 * 0.5, rel=1e-5)
    assert int((spread[0] > 0).sum()) == 9, "a window of a sixth of the height, an odd number of pixels"


def test_a_flow_moves_pixels_and_makes_none() -> None:
    images = torch.rand(1, 3, 1, 1, generator=drawn(3)).expand(5, 3, 16, 16)
    torch.testing.assert_close(Flow()(images, drawn()), images.contiguous())
    ramp = torch.linspace(0, 1, 32).expand(200, 3, 32, 32)
    moved = (Flow(largest=4.0)(ramp, drawn()) - ramp).abs().mean((1, 2, 3)) * 31 / 32 * 100
    assert 0.5 < float(moved.mean()) < 2.0, "hundredths of the height; half of 4, and only what goes along the ramp"
    assert torch.equal(Flow(largest=0.0)(ramp, drawn()).round(decimals=5), ramp.round(decimals=5))


def test_a_window_of_one_pixel_blurs_nothing() -> None:
    images = torch.rand(2, 3, 5, 7, generator=drawn())
    torch.testing.assert_close(blurred(images, 1), images)
    assert blurred(images, 5).shape == images.shape


def test_a_patch_is_a_square_of_noise_anywhere() -> None:
    grey = torch.full((300, 3, 32, 32), 0.5)
    changed = (Patch()(grey, drawn()) != 0.5).all(1)
    assert set(Patch()(grey, drawn()).unique().tolist()) == {0.0, 0.5, 1.0}
    rows, columns = changed.any(2), changed.any(1)
    assert torch.equal(changed, rows[:, :, None] & columns[:, None, :]), "a rectangle"
    sides = rows.sum(1)
    assert torch.equal(sides, columns.sum(1))
    assert set(sides.tolist()) == {3, 4, 5, 6, 7, 8}, "a tenth to a quarter of 32"
    for length in (rows, columns):
        assert {0, 31} <= set(length.int().argmax(1).tolist()) | set((31 - length.flip(1).int().argmax(1)).tolist())


def test_a_patch_has_the_same_grain_on_larger_images() -> None:
    grey = torch.full((20, 3, 64, 64), 0.5)
    changed = Patch()(grey, drawn())
    blocks = changed.reshape(20, 3, 32, 2, 32, 2)
    whole = (blocks != 0.5).all((1, 3, 5))
    assert int(whole.sum()) > 20
    assert torch.equal(blocks.amax((3, 5))[:, 0][whole], blocks.amin((3, 5))[:, 0][whole])


@pytest.mark.parametrize("part", WAVES.parts, ids=lambda part: part.name)
def test_a_wave_has_its_periods_and_direction(part: PlaneWave) -> None:
    """By its largest Fourier coefficient, which is off by half a period at most in each axis."""
    grey = torch.full((40, 3, 32, 32), 0.5)
    wave = part(grey, drawn())[:, 0] - 0.5
    assert 0.09 < float(wave.abs().max()) <= 0.1001
    strength = torch.fft.fft2(wave).abs()
    for image in strength:
        down, across = divmod(int(image.argmax()), 32)
        down, across = ((k + 16) % 32 - 16 for k in (down, across))
        assert part.low - 0.75 <= (down**2 + across**2) ** 0.5 <= part.high + 0.75
        if part.low >= 4:
            off = (math.degrees(math.atan2(down, across)) - part.direction + 90) % 180 - 90
            assert abs(off) <= 22.5 + 12


def test_the_bank_has_every_octave_in_every_direction() -> None:
    assert len({part.name for part in WAVES.parts}) == len(WAVES.parts) == 16
    assert WAVES.parts[0].name == "1 to 2 periods at 0 degrees"
