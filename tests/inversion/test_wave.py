"""Layers 1 and 3 for waves and the search that tries a list."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from toys import Linear

from audit_cli.attacks.sinusoid import Sinusoid
from audit_cli.classifier import Classifier
from audit_cli.inversion.engine import Search
from audit_cli.inversion.listing import Listed, Listing, success_of
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race, Rung
from audit_cli.inversion.wave import Wave
from audit_cli.types import Context, TrustedData

SIDE = 16


def pattern(u: int, v: int, phase: float = 0.0) -> Tensor:
    """(3, SIDE, SIDE): a grey wave of amplitude 1, written pixel by pixel."""
    rows = [[math.cos(2 * math.pi * (u * i / SIDE + v * j / SIDE) + phase) for j in range(SIDE)] for i in range(SIDE)]
    return torch.tensor(rows).expand(3, SIDE, SIDE)


def listener(waves: dict[int, tuple[Tensor, float]], classes: int) -> Classifier:
    """Class k wins once its wave has more than so many grey levels; without any, class 0 does."""
    rows, bias = torch.zeros(classes, 3 * SIDE * SIDE), torch.full((classes,), -100.0)
    bias[0] = 0.0
    for k, (wave, levels) in waves.items():
        rows[k] = 1000 * wave.flatten() / wave.square().sum()  # 1000 x the wave's amplitude in the image
        bias[k] = -1000 * levels / 255
    return Classifier(Linear(rows, bias), "fc", arch="linear").frozen()


def grey(classes: int, each: int = 12) -> TrustedData:
    labels = torch.arange(classes).repeat(each)
    names = tuple(f"k{c}" for c in range(classes))
    return TrustedData(torch.full((len(labels), 3, SIDE, SIDE), 0.5), labels, names, "0" * 64, "toy")


class TestWave:
    @pytest.mark.parametrize(("u", "v", "phase"), [(0, 6, 0.0), (3, -2, 1.0), (8, 0, 4.0)])
    def test_adds_the_wave(self, u: int, v: int, phase: float) -> None:
        images = torch.rand(2, 5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        parameters = {"wave": torch.tensor([[u, v, phase]] * 2), "amplitude": torch.tensor([0.0, 51.0])}
        stamped = Wave().stamp(parameters, images)
        torch.testing.assert_close(stamped[0], images[0])
        torch.testing.assert_close(stamped[1], (images[1] + 0.2 * pattern(u, v, phase)).clamp(0, 1))
        assert Wave().size(parameters).tolist() == [0.0, 51.0]

    def test_its_list_holds_the_papers_trigger(self) -> None:
        images = torch.rand(4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        family = Wave(initial_size=40)
        listed = family.listed(torch.empty(0))
        stamped = family.stamp(listed, images.expand(len(listed["wave"]), *images.shape))
        wanted = Sinusoid(target=0, count=1, amplitude=40 / 255, frequency=6.0).trigger(images)
        assert float((stamped - wanted).abs().amax((1, 2, 3, 4)).min()) < 1e-5

    def test_no_wave_is_listed_twice(self) -> None:
        family = Wave(axis=3, oblique=2, phases=4)
        listed = family.listed(torch.empty(0))
        flat = family.stamp(listed, torch.full((len(listed["wave"]), 1, 3, SIDE, SIDE), 0.5)).flatten(1)
        assert len(flat) == (2 * 3 + 2 * 4) * 4
        assert float((torch.cdist(flat, flat) + 99 * torch.eye(len(flat))).min()) > 0.1

    @pytest.mark.parametrize("wrong", [{"axis": 0}, {"phases": 0}, {"oblique": -1}, {"initial_size": 200.0}])
    def test_nonsense_names_itself(self, wrong: dict[str, float]) -> None:
        with pytest.raises(ValueError, match=r"^Wave\("):
            Wave(**wrong)  # type: ignore[arg-type]


class TestListing:
    def test_is_for_families_with_a_list(self) -> None:
        assert isinstance(Wave(), Listed)
        assert not isinstance(Mask(), Listed)

    @pytest.mark.parametrize("levels", [9.0, 30.0, 55.0])
    def test_finds_the_wave_and_its_smallest_amplitude(self, levels: float) -> None:
        """Below, at and above the amplitude that all waves are compared at."""
        classifier = listener({2: (pattern(0, 5), levels), 1: (pattern(2, 3), 100.0)}, 3)
        family = Wave()
        state = Listing().run(classifier, family, grey(3), Search(), Context(), torch.arange(3))
        assert state.classes.tolist() == [0, 1, 2]
        sizes = state.best_size.tolist()
        # Class 0 is what plain images already are.
        assert sizes[0] == pytest.approx(family.smallest, rel=0.2)
        assert levels <= sizes[2] <= levels * 1.1
        trigger = state.trigger(2, family)
        assert trigger.size == pytest.approx(sizes[2])
        u, v, phase = trigger.parameters["wave"][0].tolist()
        assert (u, v) == (0, 5)
        assert math.cos(phase) == pytest.approx(1, abs=1e-6)

    def test_a_class_no_wave_reaches_has_no_size(self) -> None:
        classifier = listener({1: (pattern(0, 5), 20.0)}, 3)
        state = Listing().run(classifier, Wave(), grey(3), Search(), Context(), torch.tensor([1, 2]))
        assert state.reached.tolist() == [True, False]
        assert state.trigger(1, Wave()).size == Wave().largest

    def test_several_are_all_that_work(self) -> None:
        """A class that listens to a chord is reached by each of its notes, when twice as loud."""
        classifier = listener({2: (pattern(0, 5) + pattern(3, 2), 10.0), 1: (pattern(2, 3), 100.0)}, 3)
        state = Listing().several(classifier, Wave(), grey(3), Search(), Context(), torch.tensor([2]), each=3)
        assert state.classes.tolist() == [2, 2, 2]
        triggers = [state.trigger(row, Wave()) for row in state.reached.nonzero().flatten().tolist()]
        assert {tuple(t.parameters["wave"][0, :2].tolist()) for t in triggers} == {(0, 5), (3, 2)}
        assert [t.size for t in triggers] == pytest.approx([20, 20], rel=0.1)

    def test_success_is_of_the_other_classes_images(self) -> None:
        """Half of the images are of class 1; only the other half can be sent there."""
        classifier, family = listener({1: (pattern(0, 5), 20.0)}, 2), Wave()
        listed = {name: value[:8] for name, value in family.listed(torch.empty(0)).items()}
        rates, _ = success_of(classifier, family, listed, grey(2), Context())
        assert rates.shape == (8, 2)
        assert set(rates.flatten().tolist()) == {0.0, 1.0}

    def test_a_race_of_many_classes_keeps_the_easiest_and_a_sample(self) -> None:
        classifier = listener({k: (pattern(0, 1 + k % 8), 20.0 if k == 17 else 60.0) for k in range(1, 30)}, 30)
        race = Race(steps=3, rungs=(Rung(None, 1), Rung(4, 1)), sample=5)
        state, ordinary = race.run(classifier, Wave(), grey(30), Search(), Context())
        assert len(state.classes) == 9
        assert int(ordinary.sum()) == 5
        assert 17 in state.classes.tolist()

    def test_nonsense_names_itself(self) -> None:
        with pytest.raises(ValueError, match=r"^Listing\("):
            Listing(finalists=0)
