"""Random changes of clean images: what each does, and that it leaves images behind."""

from __future__ import annotations

import pytest
import torch

from audit_cli.detectors.changes import CHANGES, Change, Flow, Noise, Reflection, blurred


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
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
