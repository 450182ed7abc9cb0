"""What a model loses against another, told by how sure both are: as good as counting, and surer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from audit_cli.repairs.belief import lost

N, K, MANY = 250, 5, 100_000


def population(weights: tuple[float, float], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (MANY, K) of two models that have most in common, and labels (MANY,) drawn as `weights` of both say."""
    generator = torch.Generator().manual_seed(seed)
    common, *own = torch.randn(3, MANY, K, generator=generator)
    first, second = 3 * common + own[0], 3 * common + own[1]
    p = torch.softmax(weights[0] * first + weights[1] * second, -1)
    return first, second, torch.multinomial(p, 1, generator=generator)[:, 0]


@pytest.mark.parametrize("weights", [(0.9, 0.1), (0.5, 0.5), (0.1, 0.9), (0.3, 0.0), (2.0, 0.5)])
def test_many_draws_have_the_true_mean_and_scatter_less_than_counts(weights: tuple[float, float]) -> None:
    first, second, labels = population(weights)
    right = (first.argmax(-1) == labels).double() - (second.argmax(-1) == labels).double()
    told, counted = [], []
    for rows in torch.randperm(MANY, generator=torch.Generator().manual_seed(1))[: 80 * N].view(80, N):
        told.append(lost(first[None, rows], second[None, rows], labels[rows]).mean())
        counted.append(right[rows].mean())
    off, spread = float(torch.stack(told).mean() - right.mean()), float(torch.stack(told).std())
    chance = float(torch.stack(counted).std())
    # Unusual weights are pulled: the mean is off then, but by less than counting scatters.
    assert abs(off) < (0.2 if weights == (0.9, 0.1) else 0.5) * chance
    assert spread < 0.95 * chance
    assert (off**2 + spread**2) ** 0.5 < 0.95 * chance


def test_the_values_scatter_as_the_mean_does() -> None:
    first, second, labels = population((0.8, 0.2))
    means, spreads = [], []
    for rows in torch.randperm(MANY, generator=torch.Generator().manual_seed(1))[: 80 * N].view(80, N):
        values = lost(first[None, rows], second[None, rows], labels[rows])
        means.append(values.mean())
        spreads.append(values.std() / N**0.5)
    assert float(torch.stack(spreads).mean()) == pytest.approx(float(torch.stack(means).std()), rel=0.3)


def test_equal_models_lose_nothing_and_views_of_an_image_count_as_one() -> None:
    first, second, labels = (rows[:N] for rows in population((0.8, 0.2)))
    assert lost(first[None], first[None], labels).abs().max() == 0
    once = lost(first[None], second[None], labels)
    torch.testing.assert_close(lost(first.expand(3, N, K), second.expand(3, N, K), labels), once)


def test_models_that_are_always_right_or_always_sure_end_in_numbers() -> None:
    labels = torch.arange(N) % K
    sure = 1e4 * torch.eye(K)[labels]
    for first, second in ((sure, sure.roll(1, -1)), (sure, sure), (sure, torch.zeros_like(sure))):
        values = lost(first[None], second[None], labels)
        assert bool(values.isfinite().all())
    assert float(lost(sure[None], sure.roll(1, -1)[None], labels).mean()) == pytest.approx(1)
