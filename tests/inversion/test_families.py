"""Layers 1 and 3 for the trigger families: known smallest triggers, and stamps against ones written pixel by pixel."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toys import Linear, Planted

from audit_cli.attacks.wanet import WaNet
from audit_cli.classifier import Classifier
from audit_cli.inversion.engine import Search
from audit_cli.inversion.frequency import Frequency, cosines
from audit_cli.inversion.pixel import Pixel
from audit_cli.inversion.random_patch import RandomPatch, places
from audit_cli.inversion.state import State
from audit_cli.inversion.warp import Warp, sample, upsampling
from audit_cli.types import Context, Trigger, TriggerFamily, TrustedData


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def search(classifier: Classifier, family: TriggerFamily, data: TrustedData, steps: int = 150) -> State:
    state = Search().start(family, torch.arange(classifier.num_classes), data.shape, Context())
    return Search().run(classifier, family, state, data, steps, Context())


def detector_of(weight: Tensor, threshold: float) -> Classifier:
    """Two classes; the second wins where <weight, x> over (C, H, W) is above `threshold`."""
    rows = 50 * torch.stack([torch.zeros_like(weight), weight]).flatten(1)
    return Classifier(Linear(rows, torch.tensor([0.0, -50 * threshold])), "fc", arch="linear").frozen()


def same_images(image: Tensor) -> TrustedData:
    """Twenty copies of one image (C, H, W), half of them of either class."""
    labels = torch.arange(20) % 2
    return TrustedData(image.expand(20, -1, -1, -1).contiguous(), labels, ("k0", "k1"), "0" * 64, "toy")


class TestWarp:
    @pytest.mark.parametrize(("grid", "side"), [(2, 5), (4, 9), (6, 32), (6, 3)])
    def test_upsampling_is_the_bicubic_one(self, grid: int, side: int) -> None:
        flow = noise(1, 1, grid, grid)
        up = upsampling(grid, side, flow)
        expected = F.interpolate(flow, (side, side + 2), mode="bicubic", align_corners=True)
        torch.testing.assert_close(up @ flow @ upsampling(grid, side + 2, flow).T, expected, rtol=1e-4, atol=1e-5)

    def test_a_training_step_that_autocasts_sees_the_same_trigger(self) -> None:
        """In bfloat16 the places read from are whole pixels off, and outside the image at its lower right."""
        flow = 0.2 * torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(3))
        trigger, images = Trigger(Warp(), {"flow": flow}, 0, 1.0), noise(2, 3, 32, 32)
        expected = trigger(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(trigger(images), expected)

    @pytest.mark.parametrize("strength", [0.3, 2.0, 20.0])
    def test_sampling_is_grid_sample_with_its_gradient(self, strength: float) -> None:
        K, B, C, H, W = 2, 3, 3, 6, 8
        images, flow = noise(K, B, C, H, W), (noise(K, 2, H, W, seed=1) - 0.5) * strength
        results = []
        for own in (True, False):
            leaf = flow.clone().requires_grad_()
            if own:
                read = sample(images, leaf)
            else:
                y = (torch.arange(H)[:, None] + leaf[:, 0]) * 2 / (H - 1) - 1
                x = (torch.arange(W) + leaf[:, 1]) * 2 / (W - 1) - 1
                where = torch.stack([x, y], -1).repeat_interleave(B, 0)
                read = F.grid_sample(images.flatten(0, 1), where, padding_mode="border", align_corners=True)
                read = read.view(K, B, C, H, W)
            (read * noise(K, B, C, H, W, seed=2)).sum().backward()
            assert leaf.grad is not None
            results.append((read.detach(), leaf.grad))
        torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-3)

    def test_expresses_wanet(self) -> None:
        """The attack's flow, in its own units: strength / H of half the image, which is (H − 1) / 2 pixels a unit."""
        attack, H = WaNet(target=0, count=1, strength=3.0, grid=4), 12
        drawn = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(attack.flow_seed)) * 2 - 1
        right_down = attack.strength / H * drawn / drawn.abs().mean() * (H - 1) / 2
        images = noise(5, 3, H, H)
        stamped = Warp(grid=4).stamp({"flow": right_down.flip(1) / H}, images[None])[0]
        torch.testing.assert_close(stamped, attack.trigger(images), rtol=1e-4, atol=1e-4)

    def test_has_the_smallest_size_there_is(self) -> None:
        """A ramp of 1/10 a pixel; class 1 reads pixel (4, 4), on a node of the grid, and wants it 5 pixels brighter."""
        weight = torch.zeros(3, 11, 11)
        weight[:, 4, 4] = 1 / 3
        ramp = (torch.arange(11) / 10).expand(3, 11, 11)
        family = Warp()
        state = search(detector_of(weight, 0.4 + 0.5), family, same_images(ramp), steps=300)
        smallest = 100 * 5 / 11 / family.grid**2  # all of it at one node
        assert smallest * (1 - 1e-3) <= float(state.best_size[1]) <= smallest * 1.25
        flow = state.best["flow"][1]
        assert float(flow[1, 2, 2]) * 11 == pytest.approx(5, abs=0.3)

    def test_nonsense_names_itself(self) -> None:
        with pytest.raises(ValueError, match=r"Warp\(grid=1\)"):
            Warp(grid=1)


class TestFrequency:
    def test_the_cosines_are_orthonormal(self) -> None:
        torch.testing.assert_close(cosines(9, 9) @ cosines(9, 9).T, torch.eye(9), rtol=1e-4, atol=1e-5)
        assert float(cosines(4, 9)[3, 2]) == pytest.approx(math.sqrt(2 / 9) * math.cos(math.pi * 3 * 2.5 / 9))

    def test_one_wave_is_found_and_costs_its_coefficient(self) -> None:
        wave = torch.outer(cosines(10, 10)[2], cosines(10, 10)[5]).expand(3, -1, -1)
        data = same_images(torch.full((3, 10, 10), 0.5))
        state = search(detector_of(wave, 1.5), Frequency(), data, steps=300)
        assert 1.5 * (1 - 1e-3) <= float(state.best_size[1]) <= 1.5 * 1.2
        coefficients = state.best["coefficients"][1]
        assert float(coefficients[:, 2, 5].sum()) == pytest.approx(1.5, rel=0.15)

    def test_high_frequencies_are_left_out(self) -> None:
        assert Frequency(block=4).initial(2, (3, 9, 3), torch.Generator())["coefficients"].shape == (2, 3, 4, 3)
        with pytest.raises(ValueError, match=r"Frequency\(block=0\)"):
            Frequency(block=0)


class TestRandomPatch:
    def test_equals_a_loop_over_images(self) -> None:
        family, images = RandomPatch(), noise(2, 6, 3, 20, 30)
        T = family.initial(2, (3, 20, 30), torch.Generator().manual_seed(1))
        assert T["mask"].shape == (2, 1, 3, 3)
        stamped = family.stamp(T, images)
        top, left = places(images, 18, 28)
        for k in range(2):
            for b in range(6):
                expected, y, x = images[k, b].clone(), int(top[k, b]), int(left[k, b])
                m, p = T["mask"][k].sigmoid(), T["pattern"][k].sigmoid()
                expected[:, y : y + 3, x : x + 3] = (1 - m) * expected[:, y : y + 3, x : x + 3] + m * p
                torch.testing.assert_close(stamped[k, b], expected)

    def test_places_belong_to_images_and_cover_the_image(self) -> None:
        images = noise(1, 400, 3, 8, 8)
        top, left = places(images, 6, 5)
        again = places(images.flip(1), 6, 5)
        assert torch.equal(again[0].flip(1), top)
        assert torch.equal(again[1].flip(1), left)
        counts = torch.bincount((top * 5 + left).flatten(), minlength=30)
        assert len(counts) == 30, "a patch outside the image"
        assert int(counts.min()) >= 3, "a place that is hardly used"
        assert int(counts.max()) <= 35

    def test_the_side_follows_the_image(self) -> None:
        assert [RandomPatch().side(*size) for size in ((32, 32), (224, 300), (8, 8), (2, 9))] == [5, 37, 3, 2]
        assert RandomPatch().ceiling((3, 32, 48)) == 25
        with pytest.raises(ValueError, match="share"):
            RandomPatch(share=0)


def test_pixel_takes_the_cheapest_pixels() -> None:
    """All three channels of a pixel cost as one, so a unit of size gains 3 · weight, on the block and nowhere more."""
    planted, family = Planted(), Pixel()
    state = search(planted.classifier(), family, planted.data(), steps=200)
    gain = 3 * planted.weight
    smallest = 3 * planted.pixels * 0.1 / gain
    found = float(state.best_size[planted.target])
    assert smallest <= found <= smallest * 1.35
    assert int(state.best_size.argmin()) == planted.target
    trigger = state.trigger(planted.target, family)
    p, n = family._parts(trigger.parameters)
    change = (p - n)[0].sum(0)
    assert float((change * planted.block).sum() / change.abs().sum()) > 0.8
    for c in {0, 1, 3}:
        assert float(state.best_size[c]) >= 3 * planted.pixels * 0.1 / 3 * (1 - 1e-3)
