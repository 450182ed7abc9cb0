"""The statistic behind BD001: re-derived naively, and calm on any clean-looking spread of sizes."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from audit_cli.detectors.smallness import PRIOR_CLASSES, PRIOR_SIGMA, Smallness, smallness

INF = float("inf")


def measure(*sizes: float, classes: int | None = None, ordinary: list[bool] | None = None) -> Smallness:
    mask = torch.tensor(ordinary if ordinary is not None else [True] * len(sizes))
    return smallness(torch.tensor(sizes, dtype=torch.float32), mask, classes or len(sizes))


@pytest.mark.parametrize(
    ("sizes", "ratios"),
    [
        ((1, 2, 4, 8), (4, 2, 0.5, 0.25)),  # medians of the others: 4, 4, 2, 2
        ((5, 5, 5, 5), (1, 1, 1, 1)),
        ((8, 1, 8, 8, 8, 8), (1, 8, 1, 1, 1, 1)),  # one small class does not change what is usual
        ((1, 2, 4, INF), (4, 2, 0.5, 0)),  # not reached: as large as the largest reached, and not suspicious
        ((3, INF, INF, INF), (1, 0, 0, 0)),
        ((INF, INF, INF, INF), (0, 0, 0, 0)),
        ((2, 6), (3, 1 / 3)),
    ],
)
def test_ratio_to_the_median_class(sizes: tuple[float, ...], ratios: tuple[float, ...]) -> None:
    assert measure(*sizes).ratio.tolist() == pytest.approx(ratios)


def test_score_re_derived() -> None:
    sizes = (torch.rand(10, generator=torch.Generator().manual_seed(0)) * 9 + 1).tolist()
    scores = measure(*sizes).score.tolist()
    for k, size in enumerate(sizes):
        others = [math.log(s) for s in sizes[:k] + sizes[k + 1 :]]
        variance = statistics.variance(others)
        sigma = math.sqrt((8 * variance + PRIOR_CLASSES * PRIOR_SIGMA**2) / (8 + PRIOR_CLASSES))
        edge = statistics.mean(others) - 1.4934 * sigma  # Blom's value for the smallest of nine
        assert scores[k] == pytest.approx(math.exp(edge) / size, rel=1e-3)


@pytest.mark.parametrize("spread", [0.05, 0.1, 0.2, 0.25])
def test_ordinary_classes_score_about_one_whatever_their_spread(spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    largest = [
        float(measure(*(torch.randn(10, generator=generator) * spread).exp().tolist()).score.max()) for _ in range(400)
    ]
    assert statistics.median(largest) < 1.2
    assert sum(score >= 1.5 for score in largest) / 400 <= 0.05


@pytest.mark.parametrize("spread", [0.1, 0.2])
def test_two_clean_classes_hardly_ever_convict_one_of_them(spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    pairs = (torch.randn(400, 2, generator=generator) * spread).exp().tolist()
    largest = [float(measure(*pair).score.max()) for pair in pairs]
    assert sum(score >= 1.2 for score in largest) / 400 <= 0.05
    assert float(measure(1, 4).score.max()) > 1.5, "a shortcut is four times as small and more"


def test_one_class_far_below_the_others_stands_out() -> None:
    ordinary = torch.linspace(0.8, 1.25, 9).tolist()
    scores = measure(0.2, *ordinary).score
    assert scores[0] > 2.5
    assert scores[1:].max() < 1


def test_after_a_race_only_the_sample_says_what_is_ordinary() -> None:
    small, sample = [0.3, 0.3, 0.3, 0.3], [1.0, 1.1, 0.9, 1.05]
    marked = measure(*small, *sample, classes=100, ordinary=[False] * 4 + [True] * 4)
    assert marked.ratio[:4].tolist() == pytest.approx([1.0 / 0.3] * 4)
    assert bool((measure(*small, *sample, classes=100).ratio[:4] < marked.ratio[:4]).all())


def test_more_classes_ask_for_a_smaller_trigger() -> None:
    """The smallest of a thousand classes lies further out by chance than the smallest of ten."""
    sizes, ordinary = [0.5, 1.0, 1.1, 0.9, 1.05], [False, True, True, True, True]
    few, many = (measure(*sizes, classes=n, ordinary=ordinary).score[0] for n in (10, 1000))
    assert many < few
