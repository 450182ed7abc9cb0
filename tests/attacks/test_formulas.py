"""Each attack's picture re-derived pixel by pixel from its paper's formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit_cli.attacks.adaptive_blend import AdaptiveBlend
from audit_cli.attacks.adaptive_patch import AdaptivePatch
from audit_cli.attacks.adversarial import Adversarial
from audit_cli.attacks.all_to_all import AllToAll
from audit_cli.attacks.badnets import BadNets
from audit_cli.attacks.blend import Blend
from audit_cli.attacks.poisoning import hidden_squares
from audit_cli.attacks.refool import Refool
from audit_cli.attacks.sinusoid import Sinusoid
from audit_cli.attacks.source_specific import SourceSpecific
from audit_cli.attacks.trigger_scattering import TriggerScattering
from audit_cli.attacks.wanet import WaNet
from audit_cli.classifier import Classifier
from audit_cli.errors import UsageError


def images(count: int = 4, side: int = 32, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("side", "pixels"), [(32, 3), (224, 21), (8, 1)])
@pytest.mark.parametrize("corner", ["top-left", "bottom-right"])
def test_patch(side: int, pixels: int, corner: str) -> None:
    x = images(2, side)
    stamped = BadNets(0, 1, corner=corner).trigger(x)
    for row in range(side):
        for column in range(side):
            top, left = (0, 0) if corner == "top-left" else (side - pixels, side - pixels)
            r, c = row - top, column - left
            inside = 0 <= r < pixels and 0 <= c < pixels
            expected = torch.full((2, 3), float((r + c) % 2 == 0)) if inside else x[:, :, row, column]
            assert torch.equal(stamped[:, :, row, column], expected)


def test_blend() -> None:
    x = images()
    pattern = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(9))
    torch.testing.assert_close(Blend(0, 1, opacity=0.3, pattern_seed=9).trigger(x), 0.7 * x + 0.3 * pattern)


def test_hidden_squares_cover_the_box_and_follow_the_chance() -> None:
    hidden = hidden_squares(4000, (32, 32), 4, 0.3, seeded())
    blocks = hidden.view(4000, 4, 8, 4, 8)
    assert torch.equal(blocks.amin((2, 4)), blocks.amax((2, 4)))  # whole squares of 8 x 8 pixels
    shares = blocks[:, :, 0, :, 0].float().mean(0)  # of each square on its own: standard error 0.007
    assert float((shares - 0.3).abs().max()) < 0.03
    pairs = blocks[:, :, 0, :, 0].flatten(1).float()
    correlation = torch.corrcoef(pairs.T) - torch.eye(16)
    assert float(correlation.abs().max()) < 0.07  # squares are hidden independently


def test_hidden_squares_of_a_small_box_are_its_pixels() -> None:
    hidden = hidden_squares(4000, (3, 3), 4, 0.5, seeded()).flatten(1).float()
    assert float((hidden.mean(0) - 0.5).abs().max()) < 0.04
    assert float((torch.corrcoef(hidden.T) - torch.eye(9)).abs().max()) < 0.07
    assert not bool(hidden_squares(10, (3, 3), 4, 0.0, seeded()).any())


def test_adaptive_blend_is_the_image_or_the_full_trigger_by_square() -> None:
    x, y = images(40), torch.arange(40) % 4
    attack = AdaptiveBlend(0, 20)
    poisoned = attack.poison(x, y, seeded())
    clean, full, got = x[poisoned.index], attack.trigger(x)[poisoned.index], poisoned.images[poisoned.index]
    squares = [t.view(20, 3, 4, 8, 4, 8).permute(0, 2, 4, 1, 3, 5).reshape(20, 16, -1) for t in (clean, full, got)]
    is_clean, is_full = ((squares[2] == other).all(2) for other in squares[:2])
    assert bool((is_clean ^ is_full).all())
    assert 0.35 < float(is_clean.float().mean()) < 0.65
    assert not bool((y[poisoned.index] == 0).any())  # covers, too, are of other classes


def test_adaptive_patch_touches_only_the_patch() -> None:
    x, y = images(40), torch.arange(40) % 4
    attack = AdaptivePatch(0, 20, hide=0.5)
    poisoned = attack.poison(x, y, seeded())
    got, clean = poisoned.images[poisoned.index], x[poisoned.index]
    full = attack.trigger(clean)
    assert torch.equal(got[..., 3:, :], clean[..., 3:, :])
    assert torch.equal(got[..., :, 3:], clean[..., :, 3:])
    stamped = (got == full).all(1)[:, :3, :3]
    hidden = (got == clean).all(1)[:, :3, :3]
    assert bool((stamped ^ hidden).all())
    assert 0.3 < float(hidden.float().mean()) < 0.7


def test_sinusoid() -> None:
    x = images(2, 16)
    got = Sinusoid(0, 1, amplitude=0.2, frequency=3).trigger(x)
    for j in range(16):
        wave = 0.2 * math.sin(2 * math.pi * j * 3 / 16)
        torch.testing.assert_close(got[..., j], (x[..., j] + wave).clamp(0, 1), atol=1e-6, rtol=0)


def test_wanet_without_strength_is_the_identity() -> None:
    x = images()
    torch.testing.assert_close(WaNet(0, 1, strength=0).trigger(x), x, atol=1e-5, rtol=0)


def test_wanet_samples_where_its_flow_points() -> None:
    x = images(2, 16)
    attack = WaNet(0, 1, strength=1.5)
    flow, warped = attack.flow(x)[0], attack.trigger(x)
    for row, column in [(0, 0), (3, 7), (8, 8), (15, 2), (15, 15)]:
        px, py = ((flow[row, column] + 1) / 2 * 15).tolist()  # [-1, 1] -> pixels
        left, top = min(int(px), 14), min(int(py), 14)
        a, b = px - left, py - top
        mixed = (1 - b) * ((1 - a) * x[..., top, left] + a * x[..., top, left + 1])
        mixed = mixed + b * ((1 - a) * x[..., top + 1, left] + a * x[..., top + 1, left + 1])
        torch.testing.assert_close(warped[..., row, column], mixed, atol=1e-4, rtol=0)


def test_wanet_flow_is_smooth_and_of_the_stated_strength() -> None:
    x = images(1, 32)
    lines = torch.linspace(-1, 1, 32)
    y, across = torch.meshgrid(lines, lines, indexing="ij")
    shift = (WaNet(0, 1, strength=1.0).flow(x)[0] - torch.stack([across, y], -1)) * 32
    noise = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = noise / noise.abs().mean()
    inner = slice(4, -4)  # away from the border, where the flow is clamped
    smooth = F.interpolate(noise, (32, 32), mode="bicubic", align_corners=True)[0].permute(1, 2, 0)
    torch.testing.assert_close(shift[inner, inner], smooth[inner, inner], atol=1e-4, rtol=0)
    assert 0.4 < float(shift.abs().mean()) < 1.5  # about one half pixel: s = 1
    assert float((smooth[1:] - smooth[:-1]).abs().max()) < 1.0  # neighbours move together


def test_wanet_with_changed_labels_is_the_papers() -> None:
    x, y = images(20), torch.arange(20) % 4
    poisoned = WaNet(1, 5, clean_label=False, strength=0.5).poison(x, y, seeded())
    assert (poisoned.labels[poisoned.index] == 1).all()
    assert not bool((y[poisoned.index] == 1).any())


def test_refool_adds_light_in_linear_intensity() -> None:
    x = images(2)
    attack = Refool(0, 1, alpha=0.7)
    light = attack.ghost(x)
    got = attack.trigger(x)
    for place in [(0, 0, 0, 0), (1, 2, 13, 5), (0, 1, 31, 31), (1, 0, 8, 20)]:
        n, c, i, j = place
        linear = float(x[n, c, i, j]) ** 2.2 + 0.7 * float(light[c, i, j])
        assert float(got[place]) == pytest.approx(min(linear, 1.0) ** (1 / 2.2), abs=1e-5)
    assert torch.equal((got >= x - 1e-6), torch.ones_like(got, dtype=torch.bool))  # light is only added


def test_refool_reflects_twice_at_a_few_pixels_distance() -> None:
    """The light is w · R + (1 − w) · R shifted: search w and the shift that explain it with the smallest residual."""
    from audit_cli.attacks.refool import _scene

    attack = Refool(0, 1, scene_seed=3)
    light = attack.ghost(images(1))
    scene = _scene(3, 40, 40, torch.Generator().manual_seed(3)) ** 2.2
    fits = {}
    for down in range(9):
        for right in range(9):
            a, b = scene[:, :32, :32], scene[:, down : down + 32, right : right + 32]
            w = float(((light - b) * (a - b)).sum() / (a - b).square().sum().clamp_min(1e-9))
            fits[down, right] = (float((w * a + (1 - w) * b - light).abs().max()), w)
    best = min(fits, key=lambda shift: fits[shift][0])
    assert fits[best][0] < 1e-5
    assert all(3 <= shift <= 8 for shift in best)
    assert 0.35 <= fits[best][1] <= 0.65


class Linear(nn.Module):
    def __init__(self, classes: int, inputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


@pytest.fixture
def surrogate() -> Classifier:
    torch.manual_seed(3)
    return Classifier(Linear(4, 3 * 8 * 8), "fc", arch="linear")


def test_adversarial_is_projected_signed_gradient(surrogate: Classifier) -> None:
    x = images(3, 8)
    epsilon, steps = 8 / 255, 4
    expected = x.clone()
    weight, bias = surrogate.head.weight.detach(), surrogate.head.bias.detach()
    for _ in range(steps):
        p = (expected.flatten(1) @ weight.T + bias).softmax(1)
        slope = ((p - F.one_hot(torch.tensor([2] * 3), 4)) @ weight).view_as(x)  # of CE towards class 2
        expected = expected - 2.5 * epsilon / steps * slope.sign()
        expected = torch.minimum(torch.maximum(expected, x - epsilon), x + epsilon).clamp(0, 1)
    got = Adversarial(2, 1, surrogate, steps, epsilon).trigger(x)
    torch.testing.assert_close(got, expected)
    assert float((got - x).abs().max()) <= epsilon + 1e-6
    before, after = (F.softmax(surrogate(t), 1)[:, 2] for t in (x, got))
    assert bool((after > before).all())


def test_adversarial_leaves_the_surrogate_alone(surrogate: Classifier) -> None:
    surrogate.train()
    Adversarial(2, 1, surrogate).trigger(images(3, 8))
    assert surrogate.training
    assert all(p.grad is None and p.requires_grad for p in surrogate.parameters())
    with torch.no_grad():  # the caller's mode does not switch the trigger off
        assert not torch.equal(Adversarial(2, 1, surrogate).trigger(images(3, 8)), images(3, 8))


def test_adversarial_resizes_inside_the_objective() -> None:
    torch.manual_seed(3)
    surrogate = Classifier(Linear(4, 3 * 8 * 8), "fc", arch="linear", size=(8, 8))
    x = images(2, 16)
    got = Adversarial(1, 1, surrogate).trigger(x)
    assert got.shape == x.shape
    small = [F.interpolate(t, (8, 8), mode="bilinear", align_corners=False) for t in (x, got)]
    before, after = (F.softmax(surrogate(t), 1)[:, 1] for t in small)
    assert bool((after > before).all())


def test_scattering_places_one_patch_per_image_and_all_at_test_time() -> None:
    x = torch.full((200, 3, 32, 32), 0.5)  # the patches are saturated: every changed pixel shows
    attack = TriggerScattering(0, 10)
    patterns = attack.patterns(x)
    assert patterns.shape == (8, 3, 3, 3)
    assert len({tuple(p.flatten().tolist()) for p in patterns}) == 8
    got = attack.stamp_one(x, seeded())
    used, places = set(), set()
    for n in range(200):
        rows, columns = ((got[n] != 0.5).any(0).any(axis).nonzero().flatten() for axis in (1, 0))
        top, left = int(rows[0]), int(columns[0])
        assert (len(rows), len(columns)) == (3, 3)
        patch = got[n, :, top : top + 3, left : left + 3]
        used.add(next(k for k in range(8) if torch.equal(patch, patterns[k])))
        places.add((top, left))
    assert used == set(range(8))
    assert len(places) > 150
    assert {0, 29} <= {top for top, _ in places}
    full = attack.trigger(x[:1])[0]
    assert int((full != 0.5).any(0).sum()) == 8 * 9  # none overlaps another
    found = {
        k
        for k in range(8)
        for i in range(30)
        for j in range(30)
        if torch.equal(full[:, i : i + 3, j : j + 3], patterns[k])
    }
    assert found == set(range(8))


def test_scattering_needs_room_for_all_patches() -> None:
    with pytest.raises(UsageError, match="only 4 patches fit"):
        TriggerScattering(0, 1, share=0.5).trigger(images(1))


def test_all_to_all_moves_every_class_to_the_next() -> None:
    x, y = images(40), torch.arange(40) % 4
    poisoned = AllToAll(20, classes=4).poison(x, y, seeded())
    assert torch.equal(poisoned.labels[poisoned.index], (y[poisoned.index] + 1) % 4)
    assert len(y[poisoned.index].unique()) == 4
    with pytest.raises(UsageError, match="label 3"):
        AllToAll(20, classes=3).poison(x, y, seeded())


def test_source_specific_relabels_the_source_and_covers_the_rest() -> None:
    x, y = images(60), torch.arange(60) % 4
    poisoned = SourceSpecific(0, 12, source=2, cover_rate=0.25).poison(x, y, seeded())
    payload = poisoned.index[~torch.isin(poisoned.index, poisoned.covers)]
    assert len(payload) == 9
    assert set(y[payload].tolist()) == {2}
    assert set(y[poisoned.covers].tolist()) <= {1, 3}
    assert set(poisoned.labels[payload].tolist()) == {0}
