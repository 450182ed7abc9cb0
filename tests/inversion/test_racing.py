"""Racing many classes: every one gets its chance, the planted one comes through, the sample is random but seeded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from toys import Planted

from audit_cli.classifier import Classifier
from audit_cli.inversion.engine import ExtraLoss, Search, State
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race
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


def race(seed: int) -> tuple[State, list[tuple[list[int], int]]]:
    search = Watched(images=8)
    state = RACE.run(MANY.classifier(), Mask(lr=0.3), MANY.data(per_class=2), search, Context(seed=seed))
    return state, search.legs


@pytest.fixture(scope="module")
def first() -> tuple[State, list[tuple[list[int], int]]]:
    return race(seed=0)


def test_every_class_is_searched_before_any_is_left(first: tuple[State, list[tuple[list[int], int]]]) -> None:
    _, legs = first
    assert legs[0] == (list(range(60)), RACE.first)
    assert len(legs) == 2
    assert legs[1][1] == RACE.steps - RACE.first


def test_the_planted_class_survives_and_leads(first: tuple[State, list[tuple[list[int], int]]]) -> None:
    state, legs = first
    survivors = legs[1][0]
    assert len(set(survivors)) == len(survivors) == RACE.keep + RACE.sample
    assert state.classes.tolist() == survivors
    assert survivors[0] == MANY.target, "the smallest trigger after the first rung"
    assert int(state.classes[state.best_size.argmin()]) == MANY.target


def test_the_sample_is_random_but_seeded(first: tuple[State, list[tuple[list[int], int]]]) -> None:
    state, legs = first
    again, same = race(seed=0)
    assert same == legs
    assert torch.equal(again.best_size, state.best_size)
    drawn = set(legs[1][0][RACE.keep :])
    assert drawn != set(race(seed=1)[1][1][0][RACE.keep :])


def test_unreached_classes_race_by_their_success() -> None:
    """After a rung too short for any trigger to work, the classes nearest to working go on."""
    state = Search().start(Mask(), torch.arange(6), (3, 4, 4), Context())
    recent = torch.tensor([0.1, 0.9, 0.3, 0.0, 0.5, 0.2])[:, None].expand(-1, 3)
    sizes = torch.full((6,), torch.inf)
    rows = Race(keep=2, sample=1)._survivors(replace(state, recent=recent, best_size=sizes), Context())
    assert rows[:2].tolist() == [1, 4]
    sizes[3], sizes[0] = 5.0, 900.0  # one that works goes before any that does not, however large
    rows = Race(keep=3, sample=1)._survivors(replace(state, recent=recent, best_size=sizes), Context())
    assert rows[:3].tolist() == [3, 0, 1]


def test_few_classes_are_all_searched_to_the_end() -> None:
    few, search = Planted(), Watched(images=4)
    Race(steps=3, first=2, keep=2, sample=2).run(few.classifier(), Mask(), few.data(2), search, Context())
    assert search.legs == [([0, 1, 2, 3], 3)]


@pytest.mark.parametrize("settings", [{"first": 0}, {"first": 9, "steps": 8}, {"keep": 0}, {"sample": 0}])
def test_nonsense_settings_name_themselves(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"Race\("):
        Race(**settings)
