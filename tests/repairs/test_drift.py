"""The ball around the pivot, and which networks are kept in it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import small

from audit_cli.classifier import Classifier
from audit_cli.models.create import create
from audit_cli.repairs.drift import bound, drift, layer_normalised


def moved(pivot: Classifier, by: float) -> Classifier:
    """A clone with `by` added to every weight."""
    other = pivot.clone()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(by)
    return other


def flat(classifier: Classifier) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in classifier.parameters()])


def test_drift_is_the_relative_distance() -> None:
    pivot = small()
    other = moved(pivot, 0.5)
    assert drift(pivot, pivot) == 0
    assert drift(other, pivot) == pytest.approx(float((flat(other) - flat(pivot)).norm() / flat(pivot).norm()))


def test_what_is_outside_is_pulled_back_along_a_straight_line() -> None:
    pivot = small()
    other = moved(pivot, 0.5)
    direction = nn.functional.normalize(flat(other) - flat(pivot), dim=0)
    bound(other, pivot, 0.1)
    assert drift(other, pivot) == pytest.approx(0.1, rel=1e-4)
    torch.testing.assert_close(nn.functional.normalize(flat(other) - flat(pivot), dim=0), direction)


def test_what_is_inside_stays() -> None:
    pivot = small()
    other = moved(pivot, 1e-3)
    before = flat(other)
    bound(other, pivot, 0.5)
    bound(pivot, pivot, 0.5)
    assert torch.equal(flat(other), before)


def test_which_networks_are_layer_normalised() -> None:
    assert not layer_normalised(create("resnet8-w4-cifar", 3))
    norm = nn.Sequential(nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 2))
    assert layer_normalised(Classifier(norm, "2", arch="toy"))
