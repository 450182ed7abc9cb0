"""Racing many classes: every one gets its chance, the planted one comes through, the sample is random but seeded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from toys import Planted

from audit_cli.classifier import Classifier
from audit_cli.inversion.engine import ExtraLoss, Search, State
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race, smallest
from audit_cli.types import Context, TriggerFamily, TrustedData

MANY = Planted(classes=60, pixels=4, height=18, width=16, target=37, weight=4.0)
RACE = Race(steps=24, first=16, keep=4, sample=5)


@dataclass(frozen=True)
class Watched(Search):
    """A search that notes which classes were searched for how many steps."""

    legs: list[tuple[list[int], int]] = field(default_factory=list)

    def run(
        self,
        suspect: Classifier,
        family: TriggerFamily,
        state: State,
        trusted: TrustedData,
        steps: int,
        context: Context,
        extra: ExtraLoss | None = None,
    ) -> State:
        self.legs.append((state.classes.tolist(), steps))
        return super().run(suspect, family, state, trusted, steps, context, extra)


@dataclass(frozen=True)
class Ran:
    """A finished race: the survivors' state, which of them are the sample, and who was searched for how long."""

    state: State
    sample: Tensor
    legs: list[tuple[list[int], int]]

    @property
    def sampled(self) -> list[int]:
        return self.state.classes[self.sample].tolist()


def race(seed: int) -> Ran:
    search = Watched(images=8)
    state, sample = RACE.run(MANY.classifier(), Mask(lr=0.3), MANY.data(per_class=2), search, Context(seed=seed))
    return Ran(state, sample, search.legs)


@pytest.fixture(scope="module")
def first() -> Ran:
    return race(seed=0)


def test_every_class_is_searched_before_any_is_left(first: Ran) -> None:
    assert first.legs[0] == (list(range(60)), RACE.first)
    assert len(first.legs) == 2
    assert first.legs[1] == (first.state.classes.tolist(), RACE.steps - RACE.first)


def test_the_planted_class_survives_and_leads(first: Ran) -> None:
    survivors = first.state.classes.tolist()
    assert len(set(survivors)) == len(survivors)
    assert RACE.sample < len(survivors) <= RACE.keep + RACE.sample
    assert MANY.target in survivors
    assert int(first.state.classes[first.state.best_size.argmin()]) == MANY.target


def test_the_sample_is_random_but_seeded(first: Ran) -> None:
    again, other = race(seed=0), race(seed=1)
    assert again.legs == first.legs
    assert torch.equal(again.state.best_size, first.state.best_size)
    assert first.sampled == again.sampled != other.sampled
    assert len(first.sampled) == len(other.sampled) == RACE.sample


def test_the_sample_does_not_look_at_sizes(first: Ran) -> None:
    """With another class planted, the same seed samples the same classes: it is fair."""
    moved = replace(MANY, target=11)
    state, sample = RACE.run(moved.classifier(), Mask(lr=0.3), moved.data(per_class=2), Watched(images=8), Context())
    assert state.classes[sample].tolist() == first.sampled
    assert 11 in state.classes.tolist()


def test_unreached_classes_come_last_by_their_success() -> None:
    """After a rung too short for any trigger to work, the classes nearest to working go on."""
    state = Search().start(Mask(), torch.arange(6), (3, 4, 4), Context())
    recent = torch.tensor([0.1, 0.9, 0.3, 0.0, 0.5, 0.2])[:, None].expand(-1, 3)
    sizes = torch.full((6,), torch.inf)
    assert smallest(replace(state, recent=recent, best_size=sizes)).tolist() == [1, 4, 2, 5, 0, 3]
    sizes[3], sizes[0] = 5.0, 900.0  # one that works goes before any that does not, however large
    assert smallest(replace(state, recent=recent, best_size=sizes)).tolist() == [3, 0, 1, 4, 2, 5]


def test_few_classes_are_all_searched_to_the_end() -> None:
    few, search = Planted(), Watched(images=4)
    state, sample = Race(steps=3, first=2, keep=2, sample=2).run(
        few.classifier(), Mask(), few.data(2), search, Context()
    )
    assert state.classes.tolist() == [0, 1, 2, 3]
    assert sample.tolist() == [True] * 4
    assert search.legs == [([0, 1, 2, 3], 3)]


@pytest.mark.parametrize("settings", [{"first": 0}, {"first": 9, "steps": 8}, {"keep": 0}, {"sample": 0}])
def test_nonsense_settings_name_themselves(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"Race\("):
        Race(**settings)
