"""Layer 1: a backdoor that is known exactly must be found, and be gone afterwards, while clean answers stay."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from toys import SOURCE, TWIN, Planted, gated, noise_data, small

from audit_cli.classifier import Classifier
from audit_cli.detectors.changes import Bank
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.engine import Search
from audit_cli.inversion.light import Light
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race
from audit_cli.inversion.source_mask import SourceMask
from audit_cli.inversion.wave import Wave
from audit_cli.metrics import asr, cda, predict
from audit_cli.repairs.drift import drift
from audit_cli.repairs.relearning import Relearning
from audit_cli.repairs.stamping import changed, mix
from audit_cli.repairs.unlearning import Survey, Unlearning
from audit_cli.training import Fit
from audit_cli.types import Context, Trigger, TrustedData

CPU = Context()
FIT = Fit(1, 0.1, 128, schedule="cosine", pad=0, flip=True, batch_norm="frozen", clip=1.0)
SEARCH, RACE = Search(images=8), Race(steps=60)


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
    lesson = settings.lesson(settings.survey(pivot, fit, CPU))
    assert {trigger.target for trigger in lesson} == {toy.target}
    repaired = settings(pivot, fit, CPU)
    for trigger in lesson:
        stamped = trigger(holdout.images)
        assert asr(predict(pivot, stamped, CPU), holdout.labels, toy.target) >= 0.9
        assert asr(predict(repaired, stamped, CPU), holdout.labels, toy.target) <= 0.05
    assert cda(predict(repaired, holdout.images, CPU), holdout.labels) == 1.0


def test_a_survey_that_is_known_is_not_made_again() -> None:
    toy = Planted(weight=3.0)
    pivot, data = toy.classifier(), toy.data()
    settings = Unlearning(families=(Mask(),), search=SEARCH, race=RACE, rounds=1, steps=2, batch=24, pad=0, flip=False)
    surveyed = settings.survey(pivot, data, CPU)
    told, whole = replace(settings, surveyed=surveyed)(pivot, data, CPU), settings(pivot, data, CPU)
    for ours, theirs in zip(told.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    clean = replace(settings, surveyed=Survey((), (), {}))(pivot, data, CPU)
    assert all(torch.equal(a, b) for a, b in zip(clean.parameters(), pivot.parameters(), strict=True))


def test_a_class_the_scan_accused_is_taught_first_however_large_its_trigger() -> None:
    toy = Planted(weight=3.0)
    innocent = toy.target - 1
    settings = Unlearning(families=(Mask(),), search=SEARCH, race=RACE, accused=frozenset({("mask", innocent)}))
    lesson = settings.lesson(settings.survey(toy.classifier(), toy.data(), CPU))
    assert [trigger.target for trigger in lesson] == [innocent, toy.target]


def test_a_wave_is_taught_and_looked_for_again() -> None:
    toy = Planted(weight=0)
    pivot, data = toy.classifier(), toy.data()
    settings = Unlearning(families=(Wave(success=0.1),), race=RACE, accused=frozenset({("wave", 1)}))
    surveyed = settings.survey(pivot, data, CPU)
    lesson = settings.lesson(surveyed)
    assert lesson[0].target == 1
    assert set(surveyed.usual) == {"wave"}
    again = settings._invert(pivot, data, {(lesson[0].family, 1)}, CPU)
    assert {t.target for t in again} == {1}
    assert 1 < len(again) <= settings.listed
    assert lesson[0].size in [t.size for t in again]


def test_what_it_is_told_of_is_searched_in_accused_classes_and_taught_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lessons: list[Sequence[Trigger]] = []

    def teach(
        self: Unlearning, model: Classifier, anchor: Classifier, lesson: Sequence[Trigger], *_: object
    ) -> Classifier:
        lessons.append(list(lesson))
        return model

    monkeypatch.setattr(Unlearning, "teach", teach)
    fine, coarse = Light(side=4, success=0.1), Light(side=2, success=0.1, name="coarse_light")
    accused = frozenset({("light", 1), ("coarse_light", 1)})
    settings = Unlearning(
        families=(Mask(success=0.1),), told=(fine, coarse), race=RACE, rounds=3, starts=2, left=1e6, accused=accused
    )  # fmt: skip
    toy = Planted(weight=0)
    settings(toy.classifier(), toy.data(), CPU)
    assert len(lessons) == 1, "light is small in all models, and not looked for again"
    triggers = lessons[0]
    lights = [trigger for trigger in triggers if trigger.family in settings.told]
    assert {trigger.target for trigger in lights} == {1}
    assert [trigger.family.name for trigger in triggers[:2]] == ["light", "coarse_light"], "the best of each kind first"
    for family in settings.told:
        sizes = [trigger.size for trigger in lights if trigger.family == family]
        assert len(sizes) == 2
        assert sizes == sorted(sizes)


def test_of_triggers_for_one_source_few_that_are_small_are_taught() -> None:
    def of_pair(target: int, source: int, size: float) -> Trigger:
        return Trigger(SourceMask(), {}, target, size, source)

    sizes = {1: 4.0, 2: 2.0, 3: 9.0, 4: 3.0, 5: 6.0}
    here = [of_pair(0, source, size) for source, size in sizes.items()]
    settings = Unlearning(families=(SourceMask(),), pairs=2, accused=frozenset({("source_mask", 0)}))
    surveyed = Survey((*here, of_pair(7, 1, 1.0), of_pair(0, 6, 7.0)), (), {"source_mask": 9.0})
    assert [(t.target, t.source) for t in settings.lesson(surveyed)] == [(0, 2), (0, 4)]
    more = replace(settings, pairs=9).lesson(surveyed)
    assert [t.source for t in more if t.target == 0] == [2, 4, 1, 5], (
        "what is as large as the median pair's is ordinary"
    )
    known = replace(settings, sources=frozenset({(0, 3), (0, 5)})).lesson(surveyed)
    assert [t.source for t in known if t.target == 0] == [5, 3], "those it is accused from, whatever their size"


@pytest.mark.parametrize("sources", [frozenset(), frozenset({(TWIN.target, SOURCE)})])
def test_what_only_images_of_one_class_obey_is_unlearnt(sources: frozenset[tuple[int, int]]) -> None:
    pivot, data = gated(), TWIN.data(24)
    fit, holdout = data.split(0.5, CPU.generator())
    settings = Unlearning(
        families=(SourceMask(),), accused=frozenset({("source_mask", TWIN.target)}), sources=sources, search=SEARCH,
        race=Race(steps=60),
        rounds=1, steps=60, lr=0.05, clip=1e6, batch=24, stamped=0.5, pad=0, flip=False, inside=0.0, fog=0.0,
    )  # fmt: skip
    smallest = settings.lesson(settings.survey(pivot, fit, CPU))[0]
    assert (smallest.target, smallest.source) == (TWIN.target, SOURCE)
    repaired = settings(pivot, fit, CPU)
    stamped, meant = smallest(holdout.images), holdout.labels == SOURCE
    others = ~meant & (holdout.labels != TWIN.target)
    before, after = (predict(model, stamped, CPU) for model in (pivot, repaired))
    assert asr(before[meant], holdout.labels[meant], TWIN.target) >= 0.9
    assert asr(before[others], holdout.labels[others], TWIN.target) <= 0.05
    assert asr(after[meant], holdout.labels[meant], TWIN.target) <= 0.05
    assert cda(predict(repaired, holdout.images, CPU), holdout.labels) == 1.0


def test_a_model_without_a_working_trigger_is_left_alone() -> None:
    pivot, data = small().eval(), noise_data()
    hopeless = Search(images=4, success=1.0, relax=1.0)
    settings = Unlearning(families=(Mask(), Additive()), search=hopeless, race=Race(steps=2), steps=3, batch=16, pad=1)
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


@dataclass(frozen=True)
class Paint:
    """Everything in one colour."""

    value: float
    controlled: bool = False

    @property
    def name(self) -> str:
        return f"{self.value:g}"

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return torch.full_like(images, self.value)


def test_kinds_of_change_are_drawn_as_often_as_one_another_and_so_are_the_parts_of_a_bank() -> None:
    images = torch.zeros(4000, 3, 2, 2)
    kinds = (Paint(1.0), Bank("many", tuple(Paint(value) for value in (2.0, 3.0))))
    seen = changed(kinds, images, torch.Generator().manual_seed(0))
    assert float(images.max()) == 0, "the images themselves stay"
    shares = [float((seen[:, 0, 0, 0] == value).float().mean()) for value in (1.0, 2.0, 3.0)]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.03)


def test_the_pupil_alone_sees_random_changes_and_on_so_many_images_of_a_batch() -> None:
    seen: list[Tensor] = []
    pivot = small().eval()
    pivot.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    data = noise_data()
    settings = Unlearning(
        steps=1, batch=16, stamped=0.25, changes=(Paint(0.5),), changed=0.5, inside=0.0, exaggerated=1.0, mixed=0.0
    )  # fmt: skip
    trigger = Trigger(Mask(), {"mask": torch.full((1, 1, 6, 6), -9.0), "pattern": torch.zeros(1, 3, 6, 6)}, 0, 1.0)
    pupil = pivot.clone()
    settings.teach(pupil, pivot, [trigger], {}, data, CPU)
    painted = [int((images == 0.5).flatten(1).all(1).sum()) for images in seen if len(images) == 16]
    assert sorted(painted) == [0, 8]


def normalised() -> Classifier:
    """A linear classifier of 16x16 images behind a layer normalisation."""
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.LayerNorm(768), nn.Linear(768, 4)), "2", arch="toy")


def test_how_a_network_is_tuned_depends_on_its_normalisation() -> None:
    settings = Unlearning(adam_lr=0.768)
    plain, other = settings.fit(small(), (3, 16, 16)), settings.fit(normalised(), (3, 16, 16))
    assert plain == replace(FIT, optimiser="sgd", steps=settings.steps, lr=settings.lr, pad=settings.pad)
    assert other == replace(FIT, optimiser="adam", steps=2 * settings.steps, lr=1e-3, pad=2)
    assert settings.fit(normalised(), (3, 224, 224)).pad == settings.pad


def test_a_layer_normalised_network_is_taught_at_the_image_alone_and_more_often() -> None:
    network = Classifier(nn.Sequential(nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 2)), "2", arch="toy")
    suited = Unlearning().suited(network)
    assert (suited.inside, suited.fog, suited.stamped) == (0.0, 0.0, suited.often)
    assert Unlearning(stamped=0.5).suited(network).stamped == 0.5
    assert Unlearning().suited(small()) == Unlearning()


def test_a_layer_normalised_network_stays_near_its_pivot() -> None:
    pivot = normalised()
    data = TrustedData(
        torch.rand(32, 3, 16, 16, generator=CPU.generator()), torch.arange(4).repeat(8), tuple("abcd"), "0" * 64
    )
    settings = Unlearning(
        families=(Mask(),), search=Search(images=4, success=0.1, relax=0.1), race=Race(steps=4), rounds=1,
        starts=1, steps=20, adam_lr=100.0, drift=0.05, batch=16, pad=0,
    )  # fmt: skip
    drifts: list[float] = []
    repaired = settings(pivot, data, CPU, lambda step, classifier: drifts.append(drift(classifier, pivot)))
    assert max(drifts) == pytest.approx(0.05, rel=1e-3)
    assert drift(repaired, pivot) == pytest.approx(0.05, rel=1e-3)


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


@pytest.mark.parametrize("field", ["rounds", "starts", "steps", "lr", "adam_lr", "longer", "drift", "batch"])
def test_nonsense_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"Unlearning\({field}=0\): must be positive"):
        Unlearning(**{field: 0})
