"""What a repair costs, over views of every image; the formula for how many images judge it is the interval's own, and
too few are refused with the number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from audit_cli.classifier import Classifier
from audit_cli.errors import UnsupportedError
from audit_cli.metrics import cda_drop
from audit_cli.repairs.holdout import LEAST_DISAGREEMENT, VIEWS, Cost, cost, divide, half_width, images_needed, viewed
from audit_cli.types import Context, TrustedData


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


class Corner(nn.Module):
    """Class 1 where the pixel at the corner, or the mean of all, is bright enough."""

    def __init__(self, bright: float, everywhere: bool = False) -> None:
        super().__init__()
        self.bright, self.everywhere = bright, everywhere
        self.head = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        seen = x.mean((1, 2, 3)) if self.everywhere else x[:, 0, 0, 0]
        return torch.stack([torch.full_like(seen, self.bright), seen], 1)


def corner(bright: float, everywhere: bool = False) -> Classifier:
    return Classifier(Corner(bright, everywhere), "head", arch="toy").frozen()


def spots() -> TrustedData:
    """Images of 8x8 pixels, all of class 1; half have two white pixels at the corner, one below the other."""
    images = torch.zeros(100, 3, 8, 8)
    images[:50, :, :2, 0] = 1
    return TrustedData(images, torch.ones(100, dtype=torch.int64), ("a", "b"), "0" * 64)


def test_images_are_moved_by_a_pixel_in_four_directions_and_by_more_where_they_are_large() -> None:
    images = torch.arange(64.0).view(1, 1, 8, 8)
    assert torch.equal(viewed(images, VIEWS[0]), images)
    down, up, right, left = (viewed(images, view) for view in VIEWS[1:5])
    for view, wanted in ((down[0, 0, 1:], images[0, 0, :-1]), (up[0, 0, :-1], images[0, 0, 1:])):
        torch.testing.assert_close(view, wanted)
    for view, wanted in ((right[0, 0, :, 1:], images[0, 0, :, :-1]), (left[0, 0, :, :-1], images[0, 0, :, 1:])):
        torch.testing.assert_close(view, wanted)
    large = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(viewed(large, VIEWS[1])[..., 7:, :], large[..., :-7, :])


def test_a_repair_is_judged_on_views_of_every_image() -> None:
    """The repaired model is wrong on every view: lost is what the pivot was right on."""
    data = spots()
    pivot, same, blind = corner(0.5), corner(0.5), corner(2.0)
    assert cost(pivot, same, data, Context()).drop[0] == 0
    told = cost(pivot, blind, data, Context())
    assert told.after == 0
    assert told.before == told.drop[0], "the logits, which tell no certainty, say a third; counting is believed"
    assert told.drop[1] < told.drop[0] < told.drop[2]
    # Moved left or in the mirror, all are dark at the corner, and the pivot clearly worse: these views are left out.
    assert told.before == pytest.approx(0.5)
    assert told.disagreement == pytest.approx(0.5)


class Linear(nn.Module):
    """Logits are sums of pixels; the weights are the first model's, a little changed."""

    def __init__(self, changed: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.head = nn.Linear(192, 3, bias=False)
        weights, other = torch.randn(2, 3, 192, generator=generator)
        self.head.weight = nn.Parameter(0.3 * (weights + changed * other))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.flatten(1) - 0.5)
        return logits


def test_how_sure_the_models_are_counts_unless_there_are_more_logits_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(300, 3, 8, 8, generator=generator)
    pivot, repaired = (Classifier(Linear(by), "head", arch="toy").frozen() for by in (0.0, 0.5))
    labels = torch.multinomial(torch.softmax(pivot(images), -1), 1, generator=generator)[:, 0]
    data = TrustedData(images, labels, ("a", "b", "c"), "0" * 64)
    believed = cost(pivot, repaired, data, Context())
    monkeypatch.setattr("audit_cli.repairs.holdout.MOST", 0)
    counted = cost(pivot, repaired, data, Context())
    assert counted.drop[0] == pytest.approx(counted.before - counted.after)
    assert (believed.before, believed.after) == (counted.before, counted.after)
    assert counted.drop[1] < believed.drop[0] < counted.drop[2]
    assert believed.drop != counted.drop
    assert believed.disagreement < counted.disagreement


def test_a_drop_of_just_the_limit_does_not_exceed_it() -> None:
    drop = sum([0.1] * 3) / 15  # in floating point a little more than 0.02
    assert drop > 0.02
    assert not Cost(0.8, 0.78, (drop, 0.0, 0.04), 0.1).exceeds(0.02)
    assert Cost(0.8, 0.77, (0.0201, 0.0, 0.04), 0.1).exceeds(0.02)


def test_an_image_that_is_lost_on_some_views_counts_as_part_of_one() -> None:
    data = spots()
    images = data.images.clone()
    images[:50] = 1
    images[:50, :, 0, 0] = 0  # bright there only when moved up or left, or in the mirror
    data = TrustedData(images, data.labels, data.class_names, data.digest)
    told = cost(corner(0.5, everywhere=True), corner(0.5), data, Context())
    assert told.before == pytest.approx(0.5)
    assert told.after == pytest.approx(0.5 * 7 / 10)
    assert told.drop[0] == pytest.approx(0.15)
    assert told.disagreement == pytest.approx(0.5 * 0.3**2)
