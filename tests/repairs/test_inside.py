"""Layer 1: a trigger nobody recovered must go when it and the recovered one meet in the same hidden unit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toys import BASE, GAIN, Planted, noise_data, small

from audit_cli.classifier import Classifier
from audit_cli.inversion.mask import Mask
from audit_cli.metrics import asr, cda, predict, wilson
from audit_cli.policy import Policy
from audit_cli.repairs.inside import Led, against, features, fed, images_needed, left_inside, moved, within
from audit_cli.repairs.stamping import in_fog
from audit_cli.repairs.unlearning import Unlearning
from audit_cli.types import Context, Trigger, TrustedData

CPU = Context()
TOY = Planted(weight=0.0)


def painted(block: Tensor) -> Trigger:
    """The trigger that makes `block` (H, W) white, for the toy's target."""
    pattern = torch.full((1, 3, TOY.height, TOY.width), 20.0)
    return Trigger(Mask(), {"mask": 40 * block[None, None] - 20, "pattern": pattern}, TOY.target, 4.0)


def two_ways_in() -> tuple[Classifier, Trigger, Trigger]:
    """A network with a hidden unit for each class's region and one that leads to the target. Two blocks of pixels turn
    that one on, the second four times as far; the triggers paint the one and the other block."""
    one, other = torch.zeros_like(TOY.block), torch.zeros_like(TOY.block)
    one[-2:, -2:], other[-2:, :2] = 1, 1
    rows = torch.cat([TOY.regions, (one + 4 * other)[None]])
    front = nn.Linear(3 * TOY.height * TOY.width, len(rows))
    front.weight.data = rows[:, None].expand(-1, 3, -1, -1).flatten(1).clone()
    front.bias.data = torch.zeros(len(rows))
    front.bias.data[-1] = -3 * 20 * BASE  # off unless a block is painted
    head = nn.Linear(len(rows), TOY.classes)
    head.weight.data = torch.zeros(TOY.classes, len(rows))
    head.weight.data[:, :-1] = GAIN * torch.eye(TOY.classes)
    head.weight.data[TOY.target, -1] = 3 * GAIN
    head.bias.data = torch.zeros(TOY.classes)
    module = nn.Sequential(nn.Flatten(), front, nn.ReLU(), head)
    return Classifier(module, "3", arch="two ways in").frozen(), painted(one), painted(other)


def success(classifier: Classifier, trigger: Trigger, data: TrustedData) -> float:
    others = data.labels != trigger.target
    return asr(predict(classifier, trigger(data.images[others]), CPU), data.labels[others], trigger.target)


@pytest.mark.parametrize(("inside", "gone"), [(1.0, True), (0.0, False)])
def test_a_trigger_that_was_not_recovered_goes_with_the_one_that_was(inside: float, gone: bool) -> None:
    pivot, recovered, true = two_ways_in()
    data = TOY.data()
    assert min(success(pivot, t, data) for t in (recovered, true)) == 1.0
    settings = Unlearning(
        inside=inside, stamped=0.5, fog=0.0, steps=200, lr=0.01, clip=1.0, batch=24, pad=0, flip=False
    )
    cuts = dict.fromkeys(within(pivot, data.images), settings.deeper) if inside else {}
    repaired = settings.teach(pivot, pivot, [recovered], cuts, data, CPU)
    assert cda(predict(repaired, data.images, CPU), data.labels) == 1.0
    assert success(repaired, recovered, data) <= 0.05
    assert (success(repaired, true, data) <= 0.05) is gone
    others = int((data.labels != TOY.target).sum())
    assert left_inside(pivot, pivot, [recovered], data, CPU) == (1.0, 1.0, others)
    left, limit = left_inside(pivot, repaired, [recovered], data, CPU), Policy.load("default").max_asr_inside
    assert left is not None
    assert (left.most <= limit) is gone  # what the recovered trigger itself does not show
    assert (against(left, limit) == ([], [])) is gone
    assert left_inside(pivot, repaired, [], data, CPU) is None


def led(count: int, of: int) -> Led:
    return Led(count / of, wilson(count, of)[1], of)


class TestWhatIsAllowedMustBeShown:
    """Of 225 held-out images 33 leave no doubt that it is less than one in five; of 25, one does, and two do not."""

    @pytest.mark.parametrize(("count", "of"), [(33, 225), (0, 16), (1, 25)])
    def test_few_enough(self, count: int, of: int) -> None:
        assert against(led(count, of), 0.2) == ([], [])

    @pytest.mark.parametrize(("count", "of"), [(34, 225), (2, 25), (1, 16), (4, 15)])
    def test_it_may_be_more(self, count: int, of: int) -> None:
        (said,), doubts = against(led(count, of), 0.2)
        assert f"still lead {count / of:.1%} of {of} images" in said
        assert not doubts

    @pytest.mark.parametrize(("count", "of"), [(0, 15), (1, 15)])
    def test_too_few_images_to_tell(self, count: int, of: int) -> None:
        objections, (said,) = against(led(count, of), 0.2)
        assert "on only 15 held-out images" in said
        assert "; 16 would be needed" in said
        assert not objections

    def test_how_many_are_needed(self) -> None:
        for limit in (0.01, 0.05, 0.2, 0.5):
            n = images_needed(limit)
            assert wilson(0, n)[1] <= limit < wilson(0, n - 1)[1]

    def test_nothing_was_looked_at(self) -> None:
        assert against(None, 0.2) == ([], [])


class Branched(nn.Module):
    """Three layers with weights, the second beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.branch = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.sum, self.last, self.fc = nn.Identity(), nn.Identity(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.sum(x + self.branch(x))
        return self.fc(self.last(x.mean((2, 3))))  # type: ignore[no-any-return]


def test_lessons_begin_where_everything_passes_half_way_and_last() -> None:
    classifier = Classifier(Branched(), "fc", arch="branched").frozen()
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert within(classifier, images) == ("module.sum", "module.last")  # not the branch, which ends before it
    blind = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "1", arch="linear").frozen()
    assert within(blind, images) == ()  # nothing but the head


@pytest.mark.parametrize(
    ("persuaded", "taught"), [(False, {"module.sum": 5.0}), (True, {"module.sum": 5.0, "module.last": 2.0})]
)
def test_the_head_is_taught_where_it_is_easily_persuaded(persuaded: bool, taught: dict[str, float]) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier = Classifier(Branched(), "fc", arch="branched").frozen()
    assert Unlearning(persuaded=persuaded).cuts(classifier, images) == taught


def test_a_fed_network_answers_to_what_it_is_fed() -> None:
    classifier, data = small().eval(), noise_data()
    first, second = data.images[:3], data.images[3:6]
    cut = within(classifier, first)[0]
    value, logits = features(classifier, cut, first)
    torch.testing.assert_close(logits, classifier(first))
    with fed(classifier, cut, value):
        torch.testing.assert_close(classifier(second), logits)
    torch.testing.assert_close(classifier(first), logits)  # the hook is gone
    assert not torch.allclose(classifier(second), logits)


def test_features_move_along_what_the_trigger_does() -> None:
    clean, triggered = torch.zeros(64, 2, 3), torch.tensor([[1.0, 2.0, -1.0]]).expand(64, 2, 3)
    far = moved(clean, triggered, 5.0, torch.Generator().manual_seed(0))
    factors = far[:, 0, 0]
    torch.testing.assert_close(far, factors[:, None, None] * triggered)
    assert 0 <= float(factors.min()) < 1
    assert 4 < float(factors.max()) <= 5


def test_half_the_images_are_in_fog() -> None:
    images = torch.rand(200, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = in_fog(images, 0.4, torch.Generator().manual_seed(1))
    clear = (seen == images).flatten(1).all(1)
    assert 70 < int(clear.sum()) < 130
    contrast = seen.flatten(2).std(2) / images.flatten(2).std(2)
    assert 0.59 < float(contrast.min()) < 0.65
    assert float(contrast.max()) < 1.0001
    assert torch.equal(in_fog(images, 0.0, torch.Generator()), images)
