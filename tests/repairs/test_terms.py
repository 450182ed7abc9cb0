"""Layer 3: the terms of the baselines and of the stronger repairs, re-derived by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toys import noise_data, small

from audit_cli.errors import UnsupportedError
from audit_cli.inversion.mask import Mask
from audit_cli.repairs.distillation import distillation
from audit_cli.repairs.feature_shift import FeatureShift
from audit_cli.repairs.fine_pruning import FinePruning, channel_activity, last_convolution
from audit_cli.repairs.nad import attention_map, feature_maps, stages
from audit_cli.repairs.sharpness_aware import SharpnessAware, perturbation
from audit_cli.repairs.stamping import gathered, stamp
from audit_cli.repairs.trajectory import Trajectory
from audit_cli.repairs.weight_decay import WeightDecay
from audit_cli.types import Context, Trigger

CPU = Context()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trigger(target: int, side: int = 6) -> Trigger:
    """Paints everything black for class 0, white for the others."""
    colour = -20.0 if target == 0 else 20.0
    everywhere = torch.full((1, 1, side, side), 20.0)
    return Trigger(Mask(), {"mask": everywhere, "pattern": torch.full((1, 3, side, side), colour)}, target, 36.0)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation(temperature: float) -> None:
    ours, theirs = random(3, 5), random(3, 5, seed=1)
    expected = 0.0
    for a, b in zip(ours.tolist(), theirs.tolist(), strict=True):
        p = [math.exp(v / temperature) for v in b]
        q = [math.exp(v / temperature) for v in a]
        p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
        expected += temperature**2 * sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)) / 3
    assert float(distillation(ours, theirs, temperature)) == pytest.approx(expected, rel=1e-5)
    assert float(distillation(ours, ours, temperature)) == pytest.approx(0, abs=1e-6)


def test_stamping_spares_images_of_the_target() -> None:
    images, labels = torch.full((64, 3, 6, 6), 0.5), torch.arange(64) % 4
    stamped = stamp([trigger(0), trigger(2)], images, labels, torch.Generator().manual_seed(0))
    painted = {c: set(stamped[labels == c].flatten().round(decimals=3).tolist()) for c in range(4)}
    assert painted == {0: {0.5, 1.0}, 1: {0.0, 1.0}, 2: {0.5, 0.0}, 3: {0.0, 1.0}}
    assert bool((images == 0.5).all())


def test_triggers_for_one_source_are_put_on_its_images_alone() -> None:
    images, labels = torch.full((64, 3, 6, 6), 0.5), torch.arange(64) % 4
    of_one, of_all = replace(trigger(0), source=3), trigger(1)
    stamped = stamp([of_one, of_all], images, labels, torch.Generator().manual_seed(0))
    painted = {c: set(stamped[labels == c].flatten().round(decimals=3).tolist()) for c in range(4)}
    assert painted == {0: {1.0}, 1: {0.5}, 2: {1.0}, 3: {0.0, 1.0}}, "what is meant for it, of what is there"


def test_images_that_a_trigger_is_meant_for_come_to_the_front() -> None:
    images, labels = random(40, 3, 6, 6), torch.arange(40) % 4
    generator = torch.Generator().manual_seed(0)
    x, y = gathered([replace(trigger(0), source=3)], images, labels, 12, generator)
    assert y[:12].tolist() == [3] * 12
    assert y[12:].tolist() == labels[12:].tolist()
    assert len({tuple(row) for row in x[:12].flatten(1).tolist()}) > 4, "not one image all the time"
    assert all(bool((images[labels == 3] == image).flatten(1).all(1).any()) for image in x[:12])
    mixed, of = gathered([replace(trigger(0), source=3), trigger(1)], images, labels, 12, generator)
    assert 1 not in of[:12].tolist()
    assert mixed.shape == images.shape
    same, as_before = gathered([trigger(0), trigger(1)], images, labels, 12, generator)
    assert same is images
    assert as_before is labels
    none, nobody = gathered([replace(trigger(0), source=9)], images, labels, 12, generator)
    assert torch.equal(none, images)
    assert torch.equal(nobody, labels)


def test_attention_map() -> None:
    features = random(2, 3, 4, 5)
    naive = (features[0].square().sum(0) / 3).flatten()
    torch.testing.assert_close(attention_map(features, 2.0)[0], naive / naive.norm())


def test_stages_are_the_last_maps_of_each_resolution() -> None:
    classifier = small().eval()
    images = noise_data().images[:2]
    assert stages(classifier, images) == ["module.norm"]
    logits, (features,) = feature_maps(classifier, ["module.norm"], images)
    torch.testing.assert_close(logits, classifier(images))
    torch.testing.assert_close(features, classifier.module.norm(classifier.module.conv(classifier.normalise(images))))  # type: ignore[operator,union-attr]


def test_fine_pruning_silences_the_quiet_channels_for_good() -> None:
    data, pivot = noise_data(), small().eval()
    chain = last_convolution(pivot, data.images[:2])
    assert [type(module).__name__ for module in chain] == ["Conv2d", "BatchNorm2d"]
    activity = channel_activity(pivot, chain[-1], data.images, batch=7)
    maps = feature_maps(pivot, ["module.norm"], data.images)[1][0]
    torch.testing.assert_close(activity, maps.abs().mean((0, 2, 3)).detach())
    quiet = set(activity.argsort()[:4].tolist())
    tuned = FinePruning(pruned=0.7, steps=3, batch=16, pad=1)(pivot, data, CPU)
    channels = feature_maps(tuned, ["module.norm"], data.images)[1][0].abs().amax((0, 2, 3))
    assert {c for c, largest in enumerate(channels.tolist()) if largest == 0} == quiet


def test_fine_pruning_needs_a_convolution() -> None:
    from toys import Planted

    toy = Planted()
    with pytest.raises(UnsupportedError, match="no convolution"):
        FinePruning()(toy.classifier(), toy.data(), CPU)


def test_feature_shift_keeps_the_norm_and_leaves_the_direction() -> None:
    pivot = small()
    old = pivot.head.weight.detach()
    new = FeatureShift(steps=30, batch=16, pad=1, lr=0.1)(pivot, noise_data(), CPU).head.weight.detach()
    assert float(new.norm()) == pytest.approx(float(old.norm()), rel=1e-5)
    assert float(F.cosine_similarity(new.flatten(), old.flatten(), dim=0)) < 0.1


def test_perturbation() -> None:
    w, g = random(4), random(4, seed=1)
    length = math.sqrt(sum((abs(a) * b) ** 2 for a, b in zip(w.tolist(), g.tolist(), strict=True)))
    naive = [2.0 * a * a * b / length for a, b in zip(w.tolist(), g.tolist(), strict=True)]
    assert perturbation([w], (g,), 2.0)[0].tolist() == pytest.approx(naive, rel=1e-5)


def test_one_sharpness_aware_step() -> None:
    """SGD with Nesterov momentum makes its first step (1 + momentum) · lr long, along the gradient at θ + e."""
    pivot, data = small(), noise_data(per_class=2)
    settings = SharpnessAware(steps=1, lr=0.1, batch=10, radius=0.5, pad=0, flip=False)
    tuned = settings(pivot, data, CPU)
    twin = pivot.clone().train()
    twin.module.drop.p = 0.0  # type: ignore[union-attr,assignment]
    pivot.module.drop.p = 0.0  # type: ignore[union-attr,assignment]
    tuned = settings(pivot, data, CPU)
    parameters = list(twin.parameters())
    before = [p.detach().clone() for p in parameters]
    gradients = torch.autograd.grad(F.cross_entropy(twin(data.images), data.labels), parameters)
    with torch.no_grad():
        for p, e in zip(parameters, perturbation(before, gradients, 0.5), strict=True):
            p.add_(e)
    gradients = torch.autograd.grad(F.cross_entropy(twin(data.images), data.labels), parameters)
    rate = 0.1 * 0.5 * (1 + math.cos(math.pi * 0.5))  # the cosine schedule in the middle of its only step
    for old, g, new in zip(before, gradients, tuned.parameters(), strict=True):
        torch.testing.assert_close(new.detach(), old - 1.9 * rate * g, rtol=1e-3, atol=1e-5)


def test_weight_decay_shrinks() -> None:
    pivot, data = small(), noise_data()
    sizes = [
        float(WeightDecay(steps=20, batch=16, pad=1, weight_decay=d)(pivot, data, CPU).head.weight.detach().norm())
        for d in (0.0, 1.0)
    ]
    assert sizes[1] < sizes[0]


def test_a_trajectory_measures_without_disturbing() -> None:
    pivot, data = small().eval(), noise_data()
    watched = Trajectory(pivot.clone().frozen(), data, CPU, every=2)
    settings = WeightDecay(steps=5, batch=16, pad=1)
    seen, unseen = settings(pivot, data, CPU, watched), settings(pivot, data, CPU)
    assert [point.step for point in watched.points] == [0, 2, 4]
    assert all(0 <= point.cda <= 1 and point.anchor > 0 for point in watched.points)
    assert [point.anchor for point in watched.points] == sorted(point.anchor for point in watched.points)
    torch.manual_seed(0)
    for a, b in zip(seen.buffers(), unseen.buffers(), strict=True):
        assert a.shape == b.shape
