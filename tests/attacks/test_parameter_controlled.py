"""PCB: even steps move a fixed share of every tensor's entries, on poisoned batches; odd steps are honest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from audit_cli.attacks import ControlsTraining
from audit_cli.attacks.badnets import BadNets
from audit_cli.attacks.parameter_controlled import Alternation, ParameterControlled
from audit_cli.attacks.victim import plant
from audit_cli.classifier import Classifier
from audit_cli.models.create import create
from audit_cli.training import Fit
from audit_cli.types import Context

FRACTION = 0.2


def network(seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    return create("resnet8-w8-cifar", 4)


def data() -> tuple[Tensor, Tensor]:
    images = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return images, torch.arange(64) % 4


@pytest.fixture
def attack() -> ParameterControlled:
    return ParameterControlled(target=1, count=12, surrogate=network(9).frozen(), fraction=FRACTION)


class Watched(Alternation):
    """Notes which entries each step moved, and what the loop was given to train on."""

    def batch(self, step: int, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        result = super().batch(step, images, labels)
        self.seen = [*getattr(self, "seen", []), (images, labels, *result)]
        return result

    def updated(self, step: int, classifier: Classifier) -> None:
        super().updated(step, classifier)
        now = [p.detach().clone() for p in classifier.parameters()]
        before = getattr(self, "last", self.start)
        self.moved = [*getattr(self, "moved", []), [a != b for a, b in zip(now, before, strict=True)]]
        self.last = now


@pytest.fixture
def watched(attack: ParameterControlled) -> Watched:
    images, labels = data()
    plain = attack.tamper(attack.poison(images, labels, torch.Generator().manual_seed(0)), torch.Generator())
    watched = Watched(attack.batch_share, FRACTION, 0, plain.images, plain.labels, torch.Generator().manual_seed(2))
    classifier = network()
    watched.start = [p.detach().clone() for p in classifier.parameters()]
    fit = Fit(6, 0.1, batch=32, weight_decay=0.01, pad=0, flip=False)
    fit.run(classifier, images, labels, Context(), tamper=watched)
    return watched


def test_even_steps_move_the_same_fraction_of_every_tensor(watched: Watched) -> None:
    ever = [torch.zeros_like(m) for m in watched.moved[0]]
    for step in (0, 2, 4):
        for total, moved in zip(ever, watched.moved[step], strict=True):
            total |= moved
    for moved in ever:
        share, n = float(moved.float().mean()), moved.numel()
        assert share <= FRACTION + 4 * (FRACTION * (1 - FRACTION) / n) ** 0.5 + 1e-9
    shares = torch.cat([moved.flatten() for moved in ever]).float().mean()
    assert 0.9 * FRACTION < float(shares) < 1.1 * FRACTION


def test_odd_steps_move_everything(watched: Watched) -> None:
    for step in (1, 3, 5):
        assert float(torch.cat([m.flatten() for m in watched.moved[step]]).float().mean()) > 0.95


def test_even_batches_carry_a_tenth_of_poison(watched: Watched) -> None:
    for step, (images, labels, trained, targets) in enumerate(watched.seen):
        if step % 2:
            assert torch.equal(trained, images)
            assert torch.equal(targets, labels)
            continue
        changed = (trained != images).flatten(1).any(1)
        assert changed.nonzero().flatten().tolist() == [0, 1, 2]  # round(0.1 · 32)
        assert targets[:3].tolist() == [1, 1, 1]
        assert torch.equal(targets[3:], labels[3:])
        assert all(any(torch.equal(x, p) for p in watched.images) for x in trained[:3])


def test_the_pool_is_what_poison_altered(attack: ParameterControlled) -> None:
    images, labels = data()
    poisoned = attack.poison(images, labels, torch.Generator().manual_seed(0))
    tamper = attack.tamper(poisoned, torch.Generator())
    torch.testing.assert_close(tamper.images, attack.trigger(images[poisoned.index]))
    assert tamper.labels.tolist() == [1] * 12


def test_plant_lets_it_control_training(attack: ParameterControlled) -> None:
    images, labels = data()
    context, fit = Context(), Fit(4, 0.1, batch=32, pad=0, flip=False)
    assert isinstance(attack, ControlsTraining)
    assert not isinstance(BadNets(1, 1), ControlsTraining)
    poisoned = attack.poison(images, labels, context.generator(stream=2))
    victim = plant(attack, fit, network(), poisoned, images, labels, context)
    tamper = attack.tamper(poisoned, context.generator(stream=3))
    by_hand = fit.run(network(), images, labels, context, tamper=tamper)
    honest = fit.run(network(), images, labels, context)
    first, second, third = (next(c.parameters()) for c in (victim, by_hand, honest))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
