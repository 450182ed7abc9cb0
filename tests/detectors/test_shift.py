"""Shifts of the last features: sizes known on paper, and which features are taken."""

from __future__ import annotations

import math

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
    data, suspect = noise_data(), small().frozen()
    whole = Shift().sizes(suspect, data, torch.arange(5), Context())
    found = Shift().sizes(suspect, data, torch.tensor([1, 4]), Context())
    torch.testing.assert_close(found, whole[[1, 4]], equal_nan=True)


def test_small_passes_equal_one_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data, suspect = noise_data(), small().frozen()
    whole = Shift().sizes(suspect, data, torch.arange(5), Context())
    monkeypatch.setattr("audit_cli.detectors.shift.FLOATS_PER_PASS", 1)
    torch.testing.assert_close(Shift().sizes(suspect, data, torch.arange(5), Context()), whole, equal_nan=True)


def test_nobody_comes_from_a_class_without_images() -> None:
    data = noise_data().take(torch.arange(0, 40, 5))
    assert set(data.labels.tolist()) == {0}
    found = Shift().sizes(small().frozen(), data, torch.arange(5), Context())
    assert found.isnan().tolist() == [[True] * 5] + [[False] + [True] * 4] * 4


def test_with_many_classes_a_target_has_few_sources() -> None:
    found = Shift(sources=2).sizes(small().frozen(), noise_data(), torch.tensor([3, 0]), Context())
    assert found.isfinite().sum(1).tolist() == [2, 2]
    assert bool(found[0, 3].isnan())
    assert bool(found[1, 0].isnan())


def test_the_detector_reports_it_as_a_family_without_a_trigger() -> None:
    detector = Calibrated(families=(), reference=None)
    found = [f for f in detector(small(), noise_data(), Context()) if f.rule_id == "BD001"]
    assert [f.target_class for f in found] == [0, 1, 2, 3, 4]
    assert {f.family for f in found} == {"features"}
    assert all(f.trigger is None and f.trigger_norm and f.score > 0 for f in found)
    for f in found:
        assert set(f.by_source) == {f"k{c}" for c in range(5) if c != f.target_class}
        assert f.details["source_name"] == max(f.by_source, key=lambda name: f.by_source[name])


def test_scores_by_source_only_where_all_sources_are_tried() -> None:
    detector = Calibrated(families=(), reference=None, shift=Shift(sources=3))
    found = [f for f in detector(small(), noise_data(), Context()) if f.rule_id == "BD001"]
    assert len(found) == 5
    assert not any(f.by_source for f in found)


@pytest.mark.parametrize(
    "settings", [{"images": 0}, {"success": 1.5}, {"factor": 1.0}, {"first": 64}, {"momentum": 1.0}]
)
def test_nonsense_settings_name_themselves(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Shift"):
        Shift(**settings)  # type: ignore[arg-type]


def test_it_can_be_left_out() -> None:
    found = list(Calibrated(families=(), reference=None, shift=None)(small(), noise_data(), Context()))
    assert [f.rule_id for f in found] == ["BD107"]
