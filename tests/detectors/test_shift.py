"""Shifts of the last features: sizes known on paper, and which features are taken."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toys import Linear, noise_data, small

from audit_cli.classifier import Classifier
from audit_cli.detectors.calibrated import Calibrated
from audit_cli.detectors.shift import Shift
from audit_cli.types import Context, TrustedData

D = 12  # latents: the pixels of a 2x2 image


def two_points(distance: float, per_class: int = 6) -> TrustedData:
    """Two classes, one image each, that differ by `distance` in every pixel."""
    labels = torch.arange(2).repeat(per_class)
    images = (0.2 + distance * labels.float())[:, None, None, None].expand(-1, 3, 2, 2).contiguous()
    return TrustedData(images, labels, ("a", "b"), "0" * 64, "points")


def linear(weight: Tensor, bias: Tensor | None = None) -> Classifier:
    bias = torch.zeros(len(weight)) if bias is None else bias
    return Classifier(Linear(weight, bias), "fc", arch="linear").frozen()


def answers(classes: int = 5, images: int = 60) -> tuple[Classifier, TrustedData]:
    """A network of random weights that says every class, and noise labelled with what it says."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(images, 3, 2, 2, generator=generator)
    weight = torch.randn(classes, D, generator=generator)
    suspect = linear(weight, -weight.sum(1) / 2)
    labels = suspect(noise).argmax(1)
    assert set(labels.tolist()) == set(range(classes))
    return suspect, TrustedData(noise, labels, tuple(f"k{c}" for c in range(classes)), "0" * 64, "noise")


@pytest.mark.parametrize("push", [0.5, 2.0])
def test_the_size_is_the_one_of_the_closed_form(push: float) -> None:
    """The logits must gain m = (w_a − w_b) · z_a + b_a − b_b, and σ · v gains at most ‖σ (w_b − w_a)‖ ‖v‖."""
    weight = torch.stack([-torch.ones(D), torch.ones(D) * push])
    data = two_points(0.4)
    suspect = linear(weight, torch.tensor([0.0, -(1 + push) * D * 0.4]))  # the boundary lies half-way
    sigma = torch.full((D,), 0.2 * math.sqrt(50 / 49))  # of 25 images of each class
    gain = float((sigma * (weight[1] - weight[0])).norm())
    logits = suspect(data.images[:2])  # of a, of b
    found = Shift().sizes(suspect, data, torch.arange(2), Context())
    assert float(found[1, 0]) == pytest.approx(float(logits[0, 0] - logits[0, 1]) / gain, rel=0.03)
    assert float(found[0, 1]) == pytest.approx(float(logits[1, 1] - logits[1, 0]) / gain, rel=0.03)


def test_some_targets_alone_get_the_same_sizes() -> None:
    suspect, data = answers()
    whole = Shift().sizes(suspect, data, torch.arange(5), Context())
    found = Shift().sizes(suspect, data, torch.tensor([1, 4]), Context())
    torch.testing.assert_close(found, whole[[1, 4]], equal_nan=True)


def test_small_passes_equal_one_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    suspect, data = answers()
    whole = Shift().sizes(suspect, data, torch.arange(5), Context())
    monkeypatch.setattr("audit_cli.detectors.shift.FLOATS_PER_PASS", 1)
    torch.testing.assert_close(Shift().sizes(suspect, data, torch.arange(5), Context()), whole, equal_nan=True)


def test_nobody_comes_from_a_class_without_images() -> None:
    suspect, data = answers()
    data = data.take(torch.nonzero(data.labels == 0).flatten())
    found = Shift().sizes(suspect, data, torch.arange(5), Context())
    assert found.isnan().tolist() == [[True] * 5] + [[False] + [True] * 4] * 4


def test_nobody_comes_from_a_class_that_is_never_recognised() -> None:
    suspect, data = answers()
    as_one = torch.where(data.labels == 4, 0, data.labels)
    strangers = replace(data, images=data.images[data.labels == 4][:1].repeat(5, 1, 1, 1), labels=torch.full((5,), 3))
    mixed = replace(
        data,
        images=torch.cat([data.images[data.labels != 3], strangers.images]),
        labels=torch.cat([as_one[data.labels != 3], strangers.labels]),
    )
    found = Shift().sizes(suspect, mixed, torch.arange(5), Context())
    assert found[0].isnan().tolist() == [True, False, False, True, True]  # 3: all wrong, 4: no images


def test_images_the_model_gets_wrong_do_not_count() -> None:
    """Were they counted, a class mistaken for the target would seem to lie next to it."""
    data = two_points(0.4, per_class=40)
    suspect = linear(torch.stack([-torch.ones(D), torch.ones(D)]), torch.tensor([0.0, -2 * D * 0.4]))
    wrong = (data.labels == 0) & (torch.arange(len(data)) % 20 != 0)  # 38 of 40 images of a are b's
    confused = replace(data, images=torch.where(wrong[:, None, None, None], data.images[1], data.images))
    alone = Shift().sizes(suspect, data, torch.tensor([1]), Context())
    found = Shift().sizes(suspect, confused, torch.tensor([1]), Context())
    assert float(alone[0, 0]) * 0.9 < float(found[0, 0]) < float(alone[0, 0]) * 3  # the spread shrinks, too


def test_with_many_classes_a_target_has_few_sources() -> None:
    suspect, data = answers()
    found = Shift(sources=2).sizes(suspect, data, torch.tensor([3, 0]), Context())
    assert found.isfinite().sum(1).tolist() == [2, 2]
    assert bool(found[0, 3].isnan())
    assert bool(found[1, 0].isnan())


def test_the_detector_reports_it_as_a_family_without_a_trigger() -> None:
    detector = Calibrated(families=(), profile=None)
    found = [f for f in detector(*answers(), Context()) if f.rule_id == "BD001"]
    assert [f.target_class for f in found] == [0, 1, 2, 3, 4]
    assert {f.family for f in found} == {"features"}
    assert all(f.trigger is None and f.trigger_norm and f.score > 0 for f in found)
    for f in found:
        assert set(f.by_source) == {f"k{c}" for c in range(5) if c != f.target_class}
        assert f.details["source_name"] == max(f.by_source, key=lambda name: f.by_source[name])


def test_scores_by_source_only_where_all_sources_are_tried() -> None:
    detector = Calibrated(families=(), shift=Shift(sources=3), profile=None)
    found = [f for f in detector(*answers(), Context()) if f.rule_id == "BD001"]
    assert len(found) == 5
    assert not any(f.by_source for f in found)


@pytest.mark.parametrize(
    "settings", [{"images": 0}, {"success": 1.5}, {"factor": 1.0}, {"first": 64}, {"momentum": 1.0}]
)
def test_nonsense_settings_name_themselves(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Shift"):
        Shift(**settings)  # type: ignore[arg-type]


def test_it_can_be_left_out() -> None:
    found = list(Calibrated(families=(), shift=None, profile=None)(small(), noise_data(), Context()))
    assert [f.rule_id for f in found] == ["BD107"]
