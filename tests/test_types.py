"""The small types: splits of trusted data, triggers, fingerprints, the context's random streams."""

from __future__ import annotations

import math

import pytest
import torch

from audit_cli.errors import BudgetExceeded
from audit_cli.inversion.additive import Additive
from audit_cli.types import Context, Finding, Trigger, TrustedData

NAMES = ("ant", "bee", "cat", "dog")
COUNTS = (7, 1, 20, 0)  # images of each class; one class has a single image, one has none


def data() -> TrustedData:
    labels = torch.tensor([c for c, n in enumerate(COUNTS) for _ in range(n)])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(9))
    images = torch.arange(len(labels)).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 5).contiguous()  # image n holds n
    return TrustedData(images, labels[order], NAMES, "d" * 64, "somewhere")


def serials(part: TrustedData) -> list[int]:
    return [int(image[0, 0, 0]) for image in part.images]


class TestTrustedData:
    def test_counts_and_shape(self) -> None:
        assert len(data()) == 28
        assert data().per_class == COUNTS
        assert data().shape == (3, 2, 5)

    def test_take_keeps_the_order_given(self) -> None:
        whole = data()
        part = whole.take(torch.tensor([5, 2, 2]))
        assert serials(part) == [5, 2, 2]
        assert part.labels.tolist() == whole.labels[[5, 2, 2]].tolist()
        assert (part.class_names, part.digest, part.source) == (NAMES, "d" * 64, "somewhere")

    @pytest.mark.parametrize("seed", [0, 1, 2])
    @pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.77, 1.0])
    def test_split_is_disjoint_complete_and_stratified(self, fraction: float, seed: int) -> None:
        whole = data()
        first, second = whole.split(fraction, torch.Generator().manual_seed(seed))
        assert sorted(serials(first) + serials(second)) == list(range(28))
        assert first.per_class == tuple(math.ceil(n * fraction) for n in COUNTS)
        for part in (first, second):
            assert part.labels.tolist() == [int(whole.labels[n]) for n in serials(part)], "labels stay with images"

    def test_split_is_shuffled_by_the_generator_alone(self) -> None:
        whole = data()
        one, again, other = (serials(whole.split(0.5, torch.Generator().manual_seed(s))[0]) for s in (0, 0, 1))
        assert one == again
        assert set(one) != set(other)


def test_trigger_is_callable_on_images() -> None:
    pattern = torch.zeros(1, 3, 2, 2)
    pattern[0, :, 0, 0] = 0.75
    trigger = Trigger(Additive(), {"pattern": pattern}, target=1, size=1.3)
    images = torch.full((4, 3, 2, 2), 0.5)
    expected = images.clone()
    expected[:, :, 0, 0] = 1.0  # clipped
    assert torch.equal(trigger(images), expected)
    assert torch.equal(images, torch.full((4, 3, 2, 2), 0.5))
    assert trigger(images[:0]).shape == (0, 3, 2, 2)


def test_fingerprint_names_the_finding_and_the_model() -> None:
    finding = Finding("BD001", 2.0, "m", family="mask", target_class=3)
    same = Finding("BD001", 9.0, "another message", family="mask", target_class=3)
    assert finding.fingerprint("a") == same.fingerprint("a")
    assert len(finding.fingerprint("a")) == 16
    int(finding.fingerprint("a"), 16)
    others = [
        finding.fingerprint("b"),
        Finding("BD002", 2.0, "m", family="mask", target_class=3).fingerprint("a"),
        Finding("BD001", 2.0, "m", family="additive", target_class=3).fingerprint("a"),
        Finding("BD001", 2.0, "m", family="mask", target_class=4).fingerprint("a"),
        Finding("BD001", 2.0, "m", family="mask").fingerprint("a"),
    ]
    assert len({finding.fingerprint("a"), *others}) == 6


class TestContext:
    def test_streams_are_their_own(self) -> None:
        def draw(seed: int, stream: int) -> tuple[float, ...]:
            return tuple(torch.rand(3, generator=Context(seed=seed).generator(stream)).tolist())

        draws = [draw(seed, stream) for seed in (0, 1, 2) for stream in range(6)]
        assert len(set(draws)) == 18
        assert draw(1, 2) == draw(1, 2)

    def test_a_large_seed_wraps_around(self) -> None:
        """As of `--seed $(date +%s%N)`; whatever fits is used as it is."""
        now = 1_760_000_000_123_456_789
        assert Context(seed=now).generator(4).initial_seed() == (now * 1_000_003 + 4) % 2**64
        assert Context(seed=now).mixed(4) != Context(seed=now + 1).mixed(4)
        for seed in (0, 7, 2**43, (2**64 - 10) // 1_000_003):
            assert Context(seed=seed).generator(4).initial_seed() == seed * 1_000_003 + 4

    def test_a_draw_leaves_torch_s_own_randomness_alone(self) -> None:
        before = torch.random.get_rng_state()
        torch.rand(5, generator=Context(seed=3).generator())
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_advance_reports_and_lets_the_budget_speak(self) -> None:
        heard: list[tuple[int, str]] = []

        class Loud:
            def stage(self, name: str, total: int) -> None: ...

            def advance(self, steps: int = 1, note: str = "") -> None:
                heard.append((steps, note))

            def check(self) -> None:
                raise BudgetExceeded("enough")

        loud = Loud()
        with pytest.raises(BudgetExceeded):
            Context(progress=loud, budget=loud).advance(2, "class 3")
        assert heard == [(2, "class 3")]

    @pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
    def test_autocast(self, dtype: torch.dtype, expected: torch.dtype) -> None:
        with Context(dtype=dtype).autocast():
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
