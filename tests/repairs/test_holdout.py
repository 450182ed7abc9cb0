"""How many images judge a repair: the formula is the interval's own, and too few are refused with the number."""

from __future__ import annotations

import pytest
import torch

from audit_cli.errors import UnsupportedError
from audit_cli.metrics import cda_drop
from audit_cli.repairs.holdout import LEAST_DISAGREEMENT, disagreement, divide, half_width, images_needed
from audit_cli.types import TrustedData


def data(per_class: list[int]) -> TrustedData:
    labels = torch.repeat_interleave(torch.arange(len(per_class)), torch.tensor(per_class))
    names = tuple(f"k{c}" for c in range(len(per_class)))
    return TrustedData(torch.zeros(len(labels), 3, 2, 2), labels, names, "0" * 64)


@pytest.mark.parametrize(("n", "changed"), [(100, 0), (100, 4), (400, 10), (1_000, 50)])
def test_half_width_is_the_interval_of_the_drop(n: int, changed: int) -> None:
    labels = torch.zeros(n, dtype=torch.int64)
    before, after = labels.clone(), labels.clone()
    before[: changed // 2] = 1
    after[changed // 2 : changed] = 1
    drop, low, high = cda_drop(before, after, labels)
    assert disagreement(before, after, labels) == pytest.approx(changed / n)
    assert drop == 0
    assert (high - low) / 2 == pytest.approx(half_width(n, changed / n))


@pytest.mark.parametrize("drop", [0.005, 0.02, 0.1])
@pytest.mark.parametrize("apart", [0.0, 0.01, 0.05, 0.2])
def test_images_needed_is_the_smallest_number(drop: float, apart: float) -> None:
    n = images_needed(drop, apart)
    assert half_width(n, apart) <= drop
    assert n == 1 or half_width(n - 1, apart) > drop


def test_two_points_take_about_two_hundred_images() -> None:
    assert 180 < images_needed(0.02) < 200
    assert 450 < images_needed(0.02, 0.05) < 550  # near z²·d / Δ² = 480


def test_divide_is_stratified_and_disjoint() -> None:
    fit, holdout = divide(data([100] * 4), 0.02, 5, torch.Generator().manual_seed(0))
    assert fit.per_class == holdout.per_class == (50,) * 4


@pytest.mark.parametrize("counts", [[100, 100, 0], [100, 100, 9]])
def test_a_class_with_too_few_images_is_refused(counts: list[int]) -> None:
    with pytest.raises(UnsupportedError, match=rf"1 of 3 classes .*fewest: {min(counts)}.* need 10 of each class"):
        divide(data(counts), 0.02, 5, torch.Generator())


def test_a_small_holdout_is_refused_with_the_number_needed() -> None:
    needed = images_needed(0.02, LEAST_DISAGREEMENT)
    with pytest.raises(UnsupportedError, match=rf"2 points .* 50 held-out images; {needed} are needed") as caught:
        divide(data([50, 50]), 0.02, 5, torch.Generator().manual_seed(0))
    assert f"about {2 * needed + 2} trusted images, where there are 100" in str(caught.value)
    divide(data([needed + 1, needed + 1]), 0.02, 5, torch.Generator().manual_seed(0))
