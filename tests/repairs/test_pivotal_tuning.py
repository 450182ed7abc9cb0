"""Layer 3: the loss terms re-derived in loops, one step re-derived by hand, and what each weight is for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toys import noise_data, small

from audit_cli.classifier import Classifier
from audit_cli.repairs.pivotal_tuning import PivotalTuning, anchor_distance, slol
from audit_cli.types import Context


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def centroid(latents: Tensor, labels: Tensor, c: int) -> list[float]:
    rows = [latents[n].tolist() for n in range(len(labels)) if int(labels[n]) == c]
    return [sum(values) / len(rows) for values in zip(*rows, strict=True)]


def naive_slol(pivot: Tensor, tuned: Tensor, labels: Tensor) -> list[float]:
    """cos(C_i − C_j, Ĉ_i − Ĉ_j) + cos(Ĉ_i, Ĉ_j) for every pair of classes present."""
    present = sorted(set(labels.tolist()))
    C = {c: centroid(pivot, labels, c) for c in present}
    Ĉ = {c: centroid(tuned, labels, c) for c in present}
    pairs = []
    for i, j in itertools.combinations(present, 2):
        turned = cosine(
            [a - b for a, b in zip(C[i], C[j], strict=True)], [a - b for a, b in zip(Ĉ[i], Ĉ[j], strict=True)]
        )
        pairs.append(turned + cosine(Ĉ[i], Ĉ[j]))
    return pairs


@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1, 2, 2], [3, 9, 9, 3], [7, 1, 4, 5]])
def test_slol(labels: list[int]) -> None:
    generator = torch.Generator().manual_seed(len(labels))
    pivot, tuned = torch.randn(2, len(labels), 6, generator=generator)
    y = torch.tensor(labels)
    pairs = naive_slol(pivot, tuned, y)
    assert float(slol(pivot, tuned, y)) == pytest.approx(sum(pairs), abs=1e-5)
    assert float(slol(pivot, tuned, y, "mean")) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


def test_slol_of_one_class_is_zero_and_differentiable() -> None:
    tuned = torch.randn(4, 6, requires_grad=True)
    value = slol(torch.randn(4, 6), tuned, torch.tensor([2, 2, 2, 2]))
    value.backward()
    assert float(value.detach()) == 0
    assert tuned.grad is not None
    assert not bool(tuned.grad.any())


def test_slol_leaves_the_pivot_alone_and_falls_when_the_geometry_turns() -> None:
    pivot = torch.eye(4)[:2]
    y = torch.tensor([0, 1])
    assert float(slol(pivot, pivot, y)) == pytest.approx(1.0)  # same direction: 1; orthogonal centroids: 0
    assert float(slol(pivot, torch.eye(4)[2:], y)) == pytest.approx(0.0)  # turned away, still orthogonal
    assert float(slol(pivot, pivot.flip(0), y)) == pytest.approx(-1.0)


def test_anchor_distance() -> None:
    pivot, other = small(seed=0), small(seed=1)
    total, entries = 0.0, 0
    theirs = dict(pivot.named_parameters())
    for name, parameter in other.named_parameters():
        total += float((parameter - theirs[name]).detach().square().sum())
        entries += parameter.numel()
    assert float(anchor_distance(pivot, other).detach()) == pytest.approx(total / entries, rel=1e-5)
    assert float(anchor_distance(pivot, pivot.clone()).detach()) == 0
    drifted = pivot.clone()
    drifted.module.norm.running_mean += 5  # type: ignore[operator, union-attr]
    assert float(anchor_distance(pivot, drifted).detach()) == 0, "statistics are no parameters"


def distance(a: Classifier, b: Classifier) -> float:
    return float(anchor_distance(a, b).detach())


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_two_steps_by_hand(reduction: str) -> None:
    """CE + λ_S · SLOL + λ_P · d under SGD with Nesterov momentum 0.9, on the whole data at every step."""
    data, pivot = noise_data(), small()
    settings = PivotalTuning(
        steps=2,
        lr=0.05,
        lambda_s=0.7,
        lambda_p=30.0,
        batch=len(data),
        reduction=reduction,
        batch_norm="frozen",
        pad=0,
        flip=False,
    )
    tuned = settings(pivot, data, Context())
    by_hand, anchor = pivot.clone().eval(), pivot.clone().eval()
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for _ in range(2):
        logits, latents = by_hand.outputs(data.images)
        pivot_latents = anchor.outputs(data.images)[1].detach()
        pairs = slol(pivot_latents, latents, data.labels, reduction)
        loss = F.cross_entropy(logits, data.labels) + 0.7 * pairs + 30.0 * anchor_distance(anchor, by_hand)
        gradients = torch.autograd.grad(loss, list(by_hand.parameters()))
        velocity = [0.9 * v + g for v, g in zip(velocity, gradients, strict=True)]
        with torch.no_grad():
            for p, g, v in zip(by_hand.parameters(), gradients, velocity, strict=True):
                p -= 0.05 * (g + 0.9 * v)
    assert distance(pivot, tuned) > 1e-6
    for (name, ours), theirs in zip(tuned.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5, msg=name)


def test_the_anchor_holds() -> None:
    data, pivot = noise_data(), small()

    def tuned(weight: float) -> Classifier:
        return PivotalTuning(steps=20, lambda_p=weight, batch=16, pad=1)(pivot, data, Context())

    free, held = tuned(0.0), tuned(500.0)
    assert 0 < distance(pivot, held) < distance(pivot, free) / 2


def test_orthogonalisation_turns_the_class_geometry() -> None:
    data, pivot = noise_data(), small().frozen()

    def turned(weight: float) -> float:
        settings = PivotalTuning(
            steps=40, lr=0.02, lambda_s=weight, lambda_p=0.0, batch=40, batch_norm="frozen", pad=0, flip=False
        )
        tuned = settings(pivot, data, Context())
        with torch.no_grad():
            return float(slol(pivot.latents(data.images), tuned.latents(data.images), data.labels))

    assert turned(0.5) < turned(0.0) - 1


def test_statistics_follow_the_batches_only_when_asked() -> None:
    data, pivot = noise_data(), small()
    before = pivot.module.norm.running_mean.clone()  # type: ignore[operator, union-attr]
    moved = PivotalTuning(steps=1, batch=16)(pivot, data, Context())
    kept = PivotalTuning(steps=1, batch=16, batch_norm="frozen")(pivot, data, Context())
    assert not torch.equal(moved.module.norm.running_mean, before)  # type: ignore[arg-type, union-attr]
    assert torch.equal(kept.module.norm.running_mean, before)  # type: ignore[arg-type, union-attr]


def test_same_seed_same_weights() -> None:
    """Also with dropout in the network, whose draws are torch's own."""
    data, pivot, settings = noise_data(), small(), PivotalTuning(steps=3, batch=16)
    one, again, other = (settings(pivot, data, Context(seed=seed)) for seed in (1, 1, 2))
    assert distance(one, again) == 0
    assert distance(one, other) > 0


@pytest.mark.parametrize(
    "settings", [{"steps": 0}, {"lr": 0.0}, {"batch": 0}, {"lambda_s": -1.0}, {"lambda_p": -1.0}, {"reduction": "max"}]
)
def test_nonsense_settings_name_themselves(settings: dict[str, float | str]) -> None:
    with pytest.raises(ValueError, match=r"PivotalTuning\("):
        PivotalTuning(**settings)  # type: ignore[arg-type]
