"""Searching per source class: pairs, their race, and a backdoor that only one class obeys."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest
import torch
from test_engine import Scripted
from torch import Tensor
from toys import SOURCE, TWIN, gated, identity, noise_data, small

from audit_cli.classifier import Classifier
from audit_cli.detectors.calibrated import Calibrated, ease
from audit_cli.inversion.engine import Search
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race, Rung, pairs, smallest_of_each
from audit_cli.inversion.source_mask import SourceMask
from audit_cli.types import Context, Trigger, TrustedData

TOY = TWIN


def test_pairs_leave_out_classes_without_images() -> None:
    data = noise_data(classes=4)
    data = data.take(torch.nonzero(data.labels != 2).flatten())  # of class 2 there are none
    targets, sources = pairs(data, 4)
    both = set(zip(targets.tolist(), sources.tolist(), strict=True))
    assert both == {(t, s) for t in range(4) for s in (0, 1, 3) if s != t}
    assert len(both) == len(targets)


def test_images_are_drawn_from_the_source_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data, drawn, real = noise_data(classes=4), [], torch.multinomial

    def record(*arguments: object, **options: object) -> Tensor:
        drawn.append(real(*arguments, **options))  # type: ignore[call-overload]
        return drawn[-1]

    monkeypatch.setattr(torch, "multinomial", record)
    sources = torch.tensor([3, 0, 1])
    state = Search().start(SourceMask(), torch.tensor([0, 1, 0]), data.shape, Context(), sources)
    state = Search().run(small(4).frozen(), SourceMask(), state, data, 2, Context())
    for index in drawn:
        for row, source in enumerate(sources.tolist()):
            assert set(data.labels[index[row]].tolist()) == {source}
    taken = state.take(torch.tensor([2, 0]))
    assert taken.sources is not None
    assert taken.sources.tolist() == [1, 3]
    assert taken.trigger(0, SourceMask()).source == 1


def test_a_trigger_says_whom_it_is_meant_for() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    assert Trigger(Mask(), {}, 1, 0.0).meant_for(labels).tolist() == [True, False, True, False]
    of_one = Trigger(SourceMask(), {}, 0, 0.0, source=1)
    assert of_one.meant_for(labels).tolist() == [False, True, False, True]
    answers = torch.tensor([1, 0, 1, 1])  # the first image of class 1 is taken for class 0 anyway
    assert of_one.meant_for(labels, answers).tolist() == [False, False, False, True]
    assert Trigger(Mask(), {}, 1, 0.0).meant_for(labels, answers).tolist() == [True, False, True, False]


def test_the_smallest_of_each_target() -> None:
    state = Search().start(Mask(), torch.tensor([0, 0, 0, 1, 1]), (3, 4, 4), Context(), torch.tensor([1, 2, 3, 0, 2]))
    state = replace(state, best_size=torch.tensor([4.0, 2.0, 3.0, torch.inf, 9.0]))
    assert smallest_of_each(state, 1).tolist() == [1, 4]
    assert smallest_of_each(state, 2).tolist() == [1, 2, 4, 3]


def test_only_the_search_per_source_convicts_a_backdoor_of_one_source() -> None:
    race = Race(steps=120)
    detector = Calibrated((Mask(), SourceMask()), race=race, references=(identity,), shift=None, profile=None)
    findings = [f for f in detector(gated(), TOY.data(), Context()) if f.rule_id == "BD001"]
    scores = {(f.family, f.target_class): f.score for f in findings}
    assert len(scores) == len(findings) == 2 * TOY.classes
    assert max(score for (family, _), score in scores.items() if family == "mask") < 1.5
    assert {c for (family, c), score in scores.items() if family == "source_mask" and score >= 1.5} == {TOY.target}
    guilty = next(f for f in findings if (f.family, f.target_class) == ("source_mask", TOY.target))
    assert (guilty.details["source"], guilty.details["source_name"]) == (SOURCE, "k0")
    assert guilty.asr_before is not None
    assert guilty.asr_before >= 0.9, "measured on images of the source"
    others = {f"k{c}" for c in range(TOY.classes)} - {f"k{TOY.target}"}
    assert guilty.by_source.keys() <= others
    assert max(guilty.by_source, key=guilty.by_source.__getitem__) == "k0"
    assert guilty.by_source["k0"] > 1.5 * statistics.median(e for f in findings for e in f.by_source.values())


def test_all_pairs_run_to_the_end() -> None:
    data, race = noise_data(classes=4), Race(steps=9, each_pair=Rung(None, 5, 2))
    state, ordinary = race.run(small(4), SourceMask(), data, Search(success=0.01), Context())
    targets, sources = pairs(data, 4)
    assert (state.classes.tolist(), state.step) == (targets.tolist(), 5)
    assert state.sources is not None
    assert state.sources.tolist() == sources.tolist()
    assert bool(ordinary.all())
    assert race.run(small(4), Mask(), data, Search(), Context())[0].step == 9
    shorter = replace(race, steps=3)
    assert shorter.run(small(4), SourceMask(), data, Search(), Context())[0].step == 3
    again = race.again(small(4), SourceMask(), [2, 0], 3, data, Search(success=0.01), Context())
    assert again.sources is not None
    both = list(zip(again.classes.tolist(), again.sources.tolist(), strict=True))
    assert both == [(0, 1), (0, 2), (0, 3), (2, 0), (2, 1), (2, 3)]
    known = race.again(small(4), SourceMask(), [2], 3, data, Search(success=0.01), Context(), source=1)
    assert known.sources is not None
    assert (known.classes.tolist(), known.sources.tolist(), known.step) == ([2] * 3, [1] * 3, 9)


def test_pairs_are_compared_with_the_median_pair() -> None:
    state = Search().start(SourceMask(), torch.tensor([0, 0, 1, 1]), (3, 4, 4), Context(), torch.tensor([1, 2, 0, 2]))
    assert ease(state, ("a", "b", "c")) == {}, "no mask works yet"
    state = replace(state, best_size=torch.tensor([4.0, 2.0, torch.inf, 8.0]))
    assert ease(state, ("a", "b", "c")) == {0: {"b": 1.0, "c": 2.0}, 1: {"c": 0.5}}


def test_too_many_pairs_are_left_out() -> None:
    data: TrustedData = noise_data(classes=5)
    assert Race(pairs=20).covers(SourceMask(), data, 5)
    assert not Race(pairs=19).covers(SourceMask(), data, 5)
    assert Race(pairs=0).covers(Mask(), data, 5)
    one_class = data.take(torch.nonzero(data.labels == 1).flatten())
    assert Race().covers(SourceMask(), one_class, 5)
    race = Race(steps=2, pairs=19)
    few = Calibrated((Mask(), SourceMask()), Search(images=4), race, references=(identity,), shift=None, profile=None)
    findings = list(few(small(), data, Context()))
    assert {f.family for f in findings if f.family} == {"mask"}
    assert sum(f.rule_id == "BD107" for f in findings) == 1


@pytest.mark.parametrize(("success", "kept"), [(0.8, True), (0.95, False)])
def test_a_family_has_its_own_matched_success(success: float, kept: bool) -> None:
    data = noise_data(classes=2)
    suspect = Classifier(Scripted([0.85] * 6), "fc", arch="scripted").frozen()
    family = Mask(success=success)
    state = Search().start(family, torch.tensor([0]), data.shape, Context())
    state = Search().run(suspect, family, state, data, 6, Context())
    assert bool(state.reached[0]) == kept
    assert (float(state.weight[0]) > family.weight) == kept, "the weight's patience goes by it, too"
