"""What random changes convicted must be gone after a repair: compared with clean models again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from toys import Planted, noise_data, small

from audit_cli.calibration import Calibration, Clean, Domain
from audit_cli.classifier import Classifier
from audit_cli.detectors.profile import Profile
from audit_cli.inversion.mask import Mask
from audit_cli.repairs import acquittal
from audit_cli.repairs.acquittal import Shown, another_shows, over_views, shown_again, still_risen
from audit_cli.repairs.holdout import VIEWS, View, viewed
from audit_cli.types import Context, Finding, Trigger, TrustedData

CPU = Context()
DATA = noise_data()
NAMES = tuple(sorted(DATA.class_names))
RISES = ("profile_noise", "profile_reflection")


def calibration(models: int = 40) -> Calibration:
    """Clean models of which random changes raise no class; the features of one class are odd on all of them."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for k in range(models):
        rises = {f: tuple((0.02 * torch.randn(len(NAMES), generator=generator)).exp().tolist()) for f in RISES}
        found.append(Clean(f"{k:064x}", "toy", 0.8, rises | {"features": (9.0,) * len(NAMES)}))
    marks = dict.fromkeys((*RISES, "features"), "0" * 16)
    return Calibration("toys", Domain("toy", 8, 8, NAMES), marks, "0" * 64, 400, tuple(found))


def convicting(family: str = "profile_reflection", p: float | None = 0.02) -> Finding:
    return Finding("BD001", 1.3, "", "calibrated", family, 1, DATA.class_names[1], p_value=p)


@pytest.fixture
def rises(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """How much each family rises at class 1 of the repaired model; nothing elsewhere."""
    risen = dict.fromkeys(RISES, 0.0)

    def answers(*_: object) -> Iterator[Finding]:
        for family, value in risen.items():
            for target, name in enumerate(DATA.class_names):
                yield Finding("BD001", math.exp(value * (target == 1)), "", "calibrated", family, target, name)

    monkeypatch.setattr(acquittal, "answers", answers)
    return risen


def objections(*findings: Finding, alpha: float | None = 0.05, by: Calibration | None = None) -> list[str]:
    return still_risen(shown_again(findings, small(), DATA, by, CPU), alpha)


def test_a_change_that_shows_nothing_more_acquits(rises: dict[str, float]) -> None:
    assert objections(convicting(), by=calibration()) == []


def test_a_change_that_still_shows_it_does_not(rises: dict[str, float]) -> None:
    rises["profile_reflection"] = 0.3
    (line,) = objections(convicting(), by=calibration())
    assert "random reflection" in line
    assert DATA.class_names[1] in line
    assert "p-value 0.024, 0.05 accepted" in line


def test_one_draw_of_random_changes_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one view of ten the class rises far, in the others it does not, or the other way round."""
    draws: list[float] = []
    shown: list[Tensor] = []

    def answers(profile: Profile, classifier: Classifier, data: TrustedData, context: Context) -> Iterator[Finding]:
        shown.append(data.images)
        value = draws.pop(0)
        yield from (
            Finding("BD001", math.exp(value * (t == 1)), "", "calibrated", "profile_reflection", t, name)
            for t, name in enumerate(data.class_names)
        )

    monkeypatch.setattr(acquittal, "answers", answers)
    clean_ones = calibration()

    def risen(values: list[float], views: Sequence[View]) -> list[str]:
        draws[:] = values
        return still_risen(shown_again([convicting()], small(), DATA, clean_ones, CPU, views), 0.05)

    assert len(risen([0.3], VIEWS[:1])) == 1
    assert risen([0.3] + [-0.03] * 9, VIEWS) == []
    assert len(risen([-0.03] + [0.3] * 9, VIEWS)) == 1
    assert torch.equal(shown[0], DATA.images)
    assert len({images.sum().item() for images in shown[1:11]}) > 1
    assert all(torch.equal(images, viewed(DATA.images, view)) for images, view in zip(shown[1:11], VIEWS, strict=True))


def test_only_the_changes_that_are_asked_about_are_made() -> None:
    toy = Planted(weight=0)
    model, data = toy.classifier().frozen(), toy.data()
    scores = over_views(model, data, {"warp"}, VIEWS[:2], CPU)
    assert {family for family, _ in scores} == {"profile", "profile_warp"}
    one, other = (over_views(model, data, {"warp"}, [view], replace(CPU, seed=k)) for k, view in enumerate(VIEWS[:2]))
    key = "profile_warp", data.class_names[0]
    assert scores[key] == pytest.approx(math.sqrt(one[key] * other[key]))


def test_only_what_convicted_is_compared(rises: dict[str, float]) -> None:
    """Under something else a repair may have made the model odd, and on clean images the target rarer."""
    rises["profile_noise"] = 0.3
    assert objections(convicting(), by=calibration()) == []
    assert len(objections(convicting("profile_noise"), by=calibration())) == 1
    assert objections(convicting("profile"), by=calibration()) == []
    other = replace(convicting("profile_noise"), target_class=2, target_name=DATA.class_names[2])
    assert objections(other, by=calibration()) == []


def test_where_no_change_convicted_by_itself_the_one_beside_is_compared(rises: dict[str, float]) -> None:
    rises["profile_reflection"] = 0.3
    profile = replace(convicting("profile"), beside="profile_reflection")
    assert len(objections(profile, by=calibration())) == 1
    assert objections(profile, convicting("profile_noise"), by=calibration()) == []


def test_a_class_that_a_trigger_convicts_is_asked_by_the_trigger(rises: dict[str, float]) -> None:
    rises["profile_reflection"] = 0.3
    pattern = Trigger(Mask(), {}, 1, 1.0)
    triggered = replace(convicting("mask"), trigger=pattern)
    assert objections(convicting(), triggered, by=calibration()) == []
    elsewhere = replace(triggered, target_class=2, target_name=DATA.class_names[2])
    assert len(objections(convicting(), elsewhere, by=calibration())) == 1


def test_whether_another_than_the_oddest_change_of_a_class_shows() -> None:
    noise, warp, elsewhere = Shown("noise", "cat", 0.02), Shown("warp", "cat", 0.02), Shown("warp", "dog", 0.02)
    assert another_shows([noise, warp], 0.05)
    assert not another_shows([noise, elsewhere], 0.05), "each is the oddest of its class"
    assert not another_shows([noise, warp._replace(p=0.3)], 0.05)
    assert not another_shows([noise, warp], None)


@pytest.mark.parametrize(("alpha", "by"), [(None, calibration()), (0.05, None)])
def test_without_clean_models_that_decide_nothing_is_said(
    rises: dict[str, float], alpha: float | None, by: Calibration | None
) -> None:
    rises["profile_reflection"] = 0.3
    assert objections(convicting(), alpha=alpha, by=by) == []
