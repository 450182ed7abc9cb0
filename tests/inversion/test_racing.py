"""Racing many classes: every one gets its chance, the planted one comes through, the sample is random but seeded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor
from toys import Linear, Planted

from audit_cli.classifier import Classifier
from audit_cli.detectors.smallness import smallness
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.engine import ExtraLoss, Search
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race, Rung, smallest
from audit_cli.inversion.state import State
from audit_cli.inversion.warp import Warp
from audit_cli.types import Context, TriggerFamily, TrustedData

MANY = Planted(classes=60, pixels=4, height=18, width=16, target=37, weight=4.0)
RACE = Race(rungs=(Rung(None, 20, 2, speed=2.0), Rung(8, 10, 4), Rung(4, 6)), sample=5, chunk=25)


@dataclass(frozen=True)
class Watched(Search):
    """A search that notes which classes were searched for how many steps, with how many images."""

    legs: list[tuple[list[int], int, int]] = field(default_factory=list)

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
        self.legs.append((state.classes.tolist(), steps, self.images))
        return super().run(suspect, family, state, trusted, steps, context, extra)


@dataclass(frozen=True)
class Ran:
    """A finished race: the survivors' state, which of them are the sample, and who was searched for how long."""

    state: State
    sample: Tensor
    legs: list[tuple[list[int], int, int]]

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
    assert [classes for classes, _, _ in first.legs[:3]] == [list(range(25)), list(range(25, 50)), list(range(50, 60))]
    assert [effort for _, *effort in first.legs] == [[20, 2]] * 3 + [[10, 4], [6, 8]]
    assert first.legs[4][0] == first.state.classes.tolist()
    assert first.state.step == 36


def test_the_sample_runs_every_rung(first: Ran) -> None:
    middle, last = (set(classes) for classes, _, _ in first.legs[3:])
    assert set(first.sampled) < last < middle
    assert len(middle) <= 8 + RACE.sample
    assert len(last) <= 4 + RACE.sample


def test_the_planted_class_survives_and_leads(first: Ran) -> None:
    survivors = first.state.classes.tolist()
    assert len(set(survivors)) == len(survivors)
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


def test_unreached_classes_come_last_by_their_success_and_their_loss() -> None:
    """After a rung too short for any trigger to work, the classes nearest to working go on."""
    state = Search().start(Mask(), torch.arange(6), (3, 4, 4), Context())
    recent = torch.tensor([0.1, 0.9, 0.0, 0.0, 0.5, 0.0])[:, None].expand(-1, 3)
    losses = torch.tensor([0.0, 9.0, 3.0, 1.0, 0.0, 2.0])[:, None].expand(-1, 3)
    sizes = torch.full((6,), torch.inf)
    state = replace(state, recent=recent, losses=losses)
    assert smallest(replace(state, best_size=sizes)).tolist() == [1, 4, 0, 3, 5, 2]
    sizes[3], sizes[0] = 5.0, 900.0  # one that works goes before any that does not, however large
    assert smallest(replace(state, best_size=sizes)).tolist() == [3, 0, 1, 4, 5, 2]


def test_few_classes_are_all_searched_to_the_end() -> None:
    """As many as the last rung has room for: the plain search, bit for bit."""
    few, data = Planted(), Planted().data(2)
    plain = Search(images=4)
    expected = plain.run(
        few.classifier(), Mask(), plain.start(Mask(), torch.arange(4), data.shape, Context()), data, 9, Context()
    )
    for room, searched in ((2, [([0, 1, 2, 3], 9, 4)]), (1, None)):
        search = Watched(images=4)
        race = Race(steps=9, rungs=(Rung(None, 2, 1), Rung(room, 3)), sample=2)
        state, sample = race.run(few.classifier(), Mask(), data, search, Context())
        if searched is None:
            assert len(search.legs) == 2, "one class more than there is room for"
            continue
        assert search.legs == searched
        assert sample.tolist() == [True] * 4
        assert torch.equal(state.best_size, expected.best_size)
        assert all(torch.equal(state.parameters[name], expected.parameters[name]) for name in expected.parameters)


def test_what_is_searched_is_the_folded_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a race and in a plain search: the twin that folding is made to give has no backdoor to find."""
    suspect, twin, data = Planted().classifier(), Planted(weight=0).classifier(), Planted().data(2)
    search, race = Search(images=4), Race(steps=20)

    def sizes(of: Classifier) -> tuple[Tensor, Tensor]:
        raced, _ = race.run(of, Mask(), data, search, Context())
        return raced.parameters["mask"], race.again(of, Mask(), [2], 1, data, search, Context()).parameters["mask"]

    expected, own = sizes(twin), sizes(suspect)
    monkeypatch.setattr("audit_cli.inversion.racing.folded", lambda classifier, probe: twin)
    for given, wanted, other in zip(sizes(suspect), expected, own, strict=True):
        assert torch.equal(given, wanted)
        assert not torch.equal(given, other)


def test_of_several_starts_the_smallest_result_counts() -> None:
    planted, data, search = Planted().classifier(), Planted().data(2), Search(images=4)
    every = search.start(Mask(), torch.arange(4).repeat(3), data.shape, Context())
    every = search.run(planted, Mask(), every, data, 60, Context())
    assert bool(every.reached.all()), "nothing to choose from"
    state, sample = Race(steps=60, starts=3).run(planted, Mask(), data, search, Context())
    assert state.classes.tolist() == [0, 1, 2, 3]
    assert sample.tolist() == [True] * 4
    assert torch.equal(state.best_size, every.best_size.view(3, 4).amin(0))
    assert len(set(every.best_size.view(3, 4).argmin(0).tolist())) > 1, "the first start was always the best"


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"pairs": -1}, {"sample": 0}, {"chunk": 0}, {"starts": 0}, {"ease": -1}]
)
def test_nonsense_settings_name_themselves(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"Race\("):
        Race(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("rungs", [(), (Rung(None, 3),), (Rung(5, 3), Rung(4, 3)), (Rung(None, 3), Rung(None, 3))])
def test_only_the_first_rung_runs_all_classes(rungs: tuple[Rung, ...]) -> None:
    with pytest.raises(ValueError, match="first, and no other, runs all classes"):
        Race(rungs=rungs)


@pytest.mark.parametrize("settings", [(0, 3), (None, 0), (4, 3, 0), (4, 3, 1, 0.0)])
def test_nonsense_rungs_name_themselves(settings: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Rung\("):
        Rung(*settings)


HEIGHT, WIDTH = 18, 16


def scene() -> Tensor:
    """(3, H, W): smooth waves, something for a warp to move."""
    y, x = torch.linspace(0, 1, HEIGHT)[:, None], torch.linspace(0, 1, WIDTH)
    return 0.5 + 0.25 * torch.stack([torch.sin(14 * (a * y + b * x)) for a, b in ((1, 0.3), (-0.4, 1), (0.8, -0.7))])


def secret(family: TriggerFamily) -> dict[str, Tensor]:
    """The planted trigger: four white pixels, a faint pattern, a small warp."""
    generator = torch.Generator().manual_seed(5)
    if family.name == "mask":
        mask = torch.full((1, 1, HEIGHT, WIDTH), -20.0)
        mask[..., 3:5, 10:12] = 9.0
        return {"mask": mask, "pattern": torch.full((1, 3, HEIGHT, WIDTH), 9.0)}
    if family.name == "additive":
        return {"pattern": 0.05 * torch.randn(1, 3, HEIGHT, WIDTH, generator=generator)}
    return {"flow": 0.02 * torch.randn(1, 2, 6, 6, generator=generator)}


def noisy(
    family: TriggerFamily, classes: int, target: int, strength: float, seed: int
) -> tuple[Classifier, TrustedData]:
    """Classes of different strength, each with a random pattern for a weight and noisy images; `target` also answers
    to what the secret trigger adds to the scene, `strength` times as much as to anything else. 0: the clean twin."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(classes, 3 * HEIGHT * WIDTH, generator=generator).sign()
    weight = patterns * (0.1 * torch.randn(classes, 1, generator=generator)).exp()
    added = (family.stamp(secret(family), scene()[None, None])[0, 0] - scene()).flatten()
    weight[target] += strength * added / added.norm()
    labels = torch.arange(classes).repeat(3)
    noise = torch.randn(len(labels), 3, HEIGHT, WIDTH, generator=generator)
    images = scene() + 0.02 * patterns[labels].view(-1, 3, HEIGHT, WIDTH) + 0.05 * noise
    data = TrustedData(images.clamp(0, 1), labels, tuple(map(str, range(classes))), "0" * 64, "toy")
    linear = Linear(0.3 * weight, -0.3 * weight @ scene().flatten())
    return Classifier(linear, "fc", arch="linear").frozen(), data


@pytest.mark.parametrize(
    ("family", "strength"), [(Mask(), 15.0), (Additive(), 60.0), (Warp(), 25.0)], ids=("mask", "additive", "warp")
)
def test_one_backdoor_among_many_noisy_classes(family: TriggerFamily, strength: float) -> None:
    """The default schedule with less room: the planted class comes through and stands out, in the twin nobody does."""
    first, second, last = Race().rungs
    race = Race(rungs=(first, replace(second, classes=6), replace(last, classes=3, steps=60)), sample=7)
    for seed, planted in ((2, strength), (1, 0.0)):
        suspect, data = noisy(family, 60, 37, planted, seed)
        state, ordinary = race.run(suspect, family, data, Search(), Context(seed=seed))
        score, guilty = smallness(state.best_size, ordinary, 60).score, state.classes == 37
        assert float(score[~guilty].max()) < 1.1
        if planted:
            assert float(score[guilty].max()) > 1.35
