"""Layer 1: a backdoor that is known exactly must be found, and be gone afterwards, while clean answers stay."""

from __future__ import annotations

import pytest
import torch
from toys import Planted, noise_data, small

from audit_cli.inversion.engine import Search
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race
from audit_cli.metrics import asr, cda, predict
from audit_cli.repairs.relearning import Relearning
from audit_cli.repairs.unlearning import Unlearning, mix
from audit_cli.types import Context, Trigger

CPU = Context()
SEARCH, RACE = Search(images=8), Race(steps=60, first=30)


def block(toy: Planted) -> Trigger:
    """The true trigger: the block painted white."""
    mask = 40 * toy.block[None, None] - 20
    return Trigger(Mask(), {"mask": mask, "pattern": torch.full((1, 3, toy.height, toy.width), 20.0)}, toy.target, 4.0)


def test_what_was_inverted_is_unlearnt() -> None:
    toy = Planted(weight=3.0)
    pivot, data = toy.classifier(), toy.data()
    fit, holdout = data.split(0.5, CPU.generator())
    settings = Unlearning(
        families=(Mask(),), search=SEARCH, race=RACE, rounds=1, steps=60, lr=0.05, clip=1e6, batch=24, pad=0, flip=False
    )
    lesson, _ = settings._survey(pivot, fit, CPU)
    assert {trigger.target for trigger in lesson} == {toy.target}
    repaired = settings(pivot, fit, CPU)
    for trigger in lesson:
        stamped = trigger(holdout.images)
        assert asr(predict(pivot, stamped, CPU), holdout.labels, toy.target) >= 0.9
        assert asr(predict(repaired, stamped, CPU), holdout.labels, toy.target) <= 0.05
    assert cda(predict(repaired, holdout.images, CPU), holdout.labels) == 1.0


def test_a_model_without_a_working_trigger_is_left_alone() -> None:
    pivot, data = small().eval(), noise_data()
    hopeless = Search(images=4, success=1.0, relax=1.0)
    settings = Unlearning(search=hopeless, race=Race(steps=2, first=1), steps=3, batch=16, pad=1)
    repaired = settings(pivot, data, CPU)
    for old, new in zip(pivot.parameters(), repaired.parameters(), strict=True):
        assert torch.equal(old, new)


def test_mixtures_lie_between_two_images_of_the_batch() -> None:
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 2, 2)
    mixed = mix(images, 0.5, torch.Generator().manual_seed(0))
    assert mixed.shape == images.shape
    assert 0 <= float(mixed.min()) <= float(mixed.max()) <= 5
    assert not torch.equal(mixed, images)
    assert torch.equal(mix(images, 0.0, torch.Generator()), images)


def test_a_live_backdoor_comes_back_sooner_than_a_new_one() -> None:
    toy = Planted(weight=2.0)
    data, trigger = toy.data(), block(toy)
    fit, holdout = data.split(0.5, CPU.generator())
    settings = Relearning(lr=0.02, every=1, steps=40, batch=24)
    alive = settings(toy.classifier(), trigger, fit, holdout, CPU)
    gone = settings(Planted(weight=0.0).classifier(), trigger, fit, holdout, CPU)
    assert alive.own == 1
    assert alive.others is not None
    assert alive.others > 5
    assert gone.own is not None
    assert gone.others is not None
    assert gone.own > 5
    assert abs(gone.own - gone.others) <= 3


@pytest.mark.parametrize("field", ["rounds", "starts", "steps", "lr", "batch"])
def test_nonsense_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"Unlearning\({field}=0\): must be positive"):
        Unlearning(**{field: 0})
