"""The search for a collapse on encoders whose backdoor is known on paper."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toys import Ticker, dark_corner, planted_encoder

from audit_cli.inversion import collapse
from audit_cli.inversion.collapse import Collapsed, CollapseSearch, deviation, directions
from audit_cli.types import Context

SEARCH = CollapseSearch(steps=150, images=8, starts=3)


def images(count: int = 24) -> Tensor:
    return dark_corner(count)


def run(search: CollapseSearch, backdoored: bool, centres: Tensor | None = None, seed: int = 0) -> Collapsed:
    encoder = planted_encoder(backdoored)
    centres = torch.empty(0, 6) if centres is None else centres
    return search.run(encoder.latents, images(), centres, Context(seed=seed))


def test_deviation_is_the_mean_distance_to_the_common_direction() -> None:
    z = F.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    centre = F.normalize(z.mean(0), dim=0)
    assert deviation(z) == pytest.approx(sum(1 - float(row @ centre) for row in z) / 7, abs=1e-6)
    pairs = [float(a @ b) for a, b in combinations(z, 2)]
    assert (1 - deviation(z)) ** 2 == pytest.approx((7 + 2 * sum(pairs)) / 49, abs=1e-5), "told from all pairs as well"
    assert deviation(z[:1].expand(7, -1)) == pytest.approx(0, abs=1e-6)


def test_directions_are_of_length_one_whatever_the_batch() -> None:
    encoder, x = planted_encoder(True), images()
    whole = directions(encoder.latents, x, Context())
    torch.testing.assert_close(whole, directions(encoder.latents, x, Context(), batch=5))
    torch.testing.assert_close(whole, F.normalize(encoder.latents(x), dim=1))


def test_the_planted_block_is_found() -> None:
    found = run(SEARCH, backdoored=True)
    row = int(found.sizes.argmin())
    mask = found.parameters["mask"][row, 0].sigmoid()
    assert float(found.sizes[row]) == pytest.approx(float(mask.sum()), rel=1e-5), "the size of the mask that is kept"
    assert float(mask[-2:, -2:].sum()) > 0.9 * float(mask.sum()), "on the block"
    stamped = SEARCH.family.stamp({k: v[row : row + 1] for k, v in found.parameters.items()}, images()[None])[0]
    encoder, context = planted_encoder(True), Context()
    before, after = (deviation(directions(encoder.latents, x, context)) for x in (images(), stamped))
    assert after < 0.2 * before
    centre = F.normalize(directions(encoder.latents, stamped, context).mean(0), dim=0)
    assert float(centre @ found.centres[row]) > 0.95, "where its embeddings met"


def test_a_clean_encoder_needs_a_much_larger_mask() -> None:
    clean, backdoored = (float(run(SEARCH, b).sizes.min()) for b in (False, True))
    assert clean > 8 * backdoored


def test_given_centres_are_where_the_embeddings_meet() -> None:
    centres = F.normalize(torch.randn(2, 6, generator=torch.Generator().manual_seed(5)), dim=1)
    found = run(CollapseSearch(steps=150, images=8, starts=1, collapse=0.6), backdoored=False, centres=centres)
    reached = found.sizes[1:].isfinite()
    assert bool(reached.any())
    assert bool(((found.centres[1:] * centres).sum(1)[reached] > 0.8).all())
    assert found.sizes.shape == (3,)


def test_the_seed_decides_and_the_slices_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    search = CollapseSearch(steps=12, images=4, starts=3, collapse=0.3)
    one, again, other = (run(search, True, seed=seed) for seed in (0, 0, 1))
    monkeypatch.setattr(collapse, "PIXELS_PER_PASS", 1)  # one trigger at a time
    sliced = run(search, True)
    for name, value in one.parameters.items():
        assert torch.equal(value, again.parameters[name])
        assert not torch.equal(value, other.parameters[name])
        torch.testing.assert_close(value, sliced.parameters[name], rtol=0, atol=1e-3)


def test_the_smallest_is_kept_however_long_it_goes_on() -> None:
    sizes = [run(CollapseSearch(steps=n, images=8, starts=3), True).sizes for n in (60, 63, 66, 69, 72)]
    assert bool(sizes[0].isfinite().all())
    assert all(bool((later <= before).all()) for before, later in pairwise(sizes))


def test_nothing_counts_before_it_worked_for_long_enough() -> None:
    found = run(CollapseSearch(steps=3, images=4, starts=2, collapse=0.01), True)
    assert found.sizes.tolist() == [math.inf] * 2


def test_the_budget_is_asked_at_every_step() -> None:
    ticks = Ticker()

    class Counting:
        def check(self) -> None:
            ticks()

    context = Context(budget=Counting())
    CollapseSearch(steps=7, images=4, starts=1).run(planted_encoder(True).latents, images(), torch.empty(0, 6), context)
    assert ticks() >= 7


@pytest.mark.parametrize("bad", [{"steps": 0}, {"images": 1}, {"starts": 0}, {"patience": 0}, {"collapse": 1.0}])
def test_impossible_settings_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="CollapseSearch"):
        CollapseSearch(**bad)  # type: ignore[arg-type]
