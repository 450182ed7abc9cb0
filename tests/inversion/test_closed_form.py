"""Layer 1: on linear classifiers the smallest trigger is known on paper, and the search must find it."""

from __future__ import annotations

import pytest
import torch
from toys import Planted

from audit_cli.inversion.additive import Additive
from audit_cli.inversion.engine import Search
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.state import State
from audit_cli.metrics import asr, predict
from audit_cli.types import Context, TriggerFamily

STEPS = 150
# What is found may exceed the optimum by this much. It may not fall below it: every image of a class has the same
# margin, so that a trigger under the optimum fails for whole classes, not for a tolerated few images.
EXCESS = 0.08


def search(planted: Planted, family: TriggerFamily) -> State:
    data, settings = planted.data(), Search()
    start = settings.start(family, torch.arange(planted.classes), data.shape, Context())
    return settings.run(planted.classifier(), family, start, data, STEPS, Context())


@pytest.fixture(scope="module")
def masks() -> tuple[State, State]:
    return search(Planted(), Mask()), search(Planted(weight=0), Mask())


@pytest.fixture(scope="module")
def patterns() -> tuple[State, State]:
    return search(Planted(), Additive()), search(Planted(weight=0), Additive())


def test_the_mask_lies_on_the_planted_block(masks: tuple[State, State]) -> None:
    planted = Planted()
    trigger = masks[0].trigger(planted.target, Mask())
    mask = trigger.parameters["mask"][0, 0].sigmoid()
    assert float((mask * planted.block).sum() / mask.sum()) > 0.9
    assert int(masks[0].best_size.argmin()) == planted.target
    data = planted.data()
    assert asr(predict(planted.classifier(), trigger(data.images), Context()), data.labels, planted.target) >= 0.95


def test_the_mask_has_the_smallest_size_there_is(masks: tuple[State, State]) -> None:
    planted, twin = Planted(), Planted(weight=0)
    found = float(masks[0].best_size[planted.target])
    assert planted.smallest_mask(planted.target) <= found <= planted.smallest_mask(planted.target) * (1 + EXCESS)
    for c, size in enumerate(masks[1].best_size.tolist()):
        assert twin.smallest_mask(c) * (1 - 1e-3) <= size <= twin.smallest_mask(c) * (1 + EXCESS)


def test_the_pattern_has_the_smallest_size_there_is(patterns: tuple[State, State]) -> None:
    planted, twin = Planted(), Planted(weight=0)
    assert int(patterns[0].best_size.argmin()) == planted.target
    found, optimum = float(patterns[0].best_size[planted.target]), planted.smallest_additive(planted.target)
    assert optimum * (1 - 1e-3) <= found <= optimum * (1 + EXCESS)
    for c, size in enumerate(patterns[1].best_size.tolist()):
        assert twin.smallest_additive(c) * (1 - 1e-3) <= size <= twin.smallest_additive(c) * (1 + EXCESS)


def test_the_pattern_points_along_the_weights(patterns: tuple[State, State]) -> None:
    """The optimum lies in the span of the class weights: λ · (w_target − mean of the others' own regions)."""
    planted = Planted()
    regions, block = planted.regions, planted.block
    others = regions.sum(0) - regions[planted.target]
    direction = regions[planted.target] - others / (planted.classes - 1) + planted.weight * block
    pattern = patterns[0].trigger(planted.target, Additive()).parameters["pattern"][0]
    cosine = torch.cosine_similarity(pattern.flatten(), direction.expand(3, -1, -1).flatten(), dim=0)
    assert float(cosine) > 0.95


@pytest.mark.parametrize("family", [Mask(), Additive()], ids=lambda family: family.name)
def test_a_class_out_of_reach_is_said_to_be(family: TriggerFamily) -> None:
    """Class 1 has a bias that no image in [0, 1] can overcome."""
    planted = Planted(weight=0)
    classifier, data = planted.classifier(), planted.data()
    classifier.head.bias.data[1] -= 1e4
    start = Search().start(family, torch.arange(planted.classes), data.shape, Context())
    state = Search().run(classifier, family, start, data, 20, Context())
    assert not bool(state.reached[1])
    assert state.best_size[1] == torch.inf
    trigger = state.trigger(1, family)
    assert trigger.target == 1
    assert trigger.size == pytest.approx(float(family.size(state.parameters)[1]))


def test_the_suspect_is_not_changed(masks: tuple[State, State]) -> None:
    planted = Planted()
    classifier, data = planted.classifier(), planted.data()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    start = Search().start(Mask(), torch.arange(planted.classes), data.shape, Context())
    Search().run(classifier, Mask(), start, data, 3, Context())
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.parameters())
