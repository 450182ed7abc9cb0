"""The answers on clean images: a profile known on paper, and what the detector makes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from toys import Linear, noise_data, small

from audit_cli.calibration import with_p_values
from audit_cli.classifier import Classifier
from audit_cli.conformal import EITHER_WAY
from audit_cli.detectors.calibrated import Calibrated, answers
from audit_cli.detectors.changes import Bank, Contrast
from audit_cli.detectors.profile import MOST, Answers, Profile, rise
from audit_cli.types import Context, TrustedData

PIXELS = 12  # of a 2 x 2 image


def three_colours() -> TrustedData:
    """One image of each of three classes: all pixels 1 in one channel, 0 in the others; class 0 twice."""
    images = torch.eye(3)[:, :, None, None].expand(3, 3, 2, 2)[[0, 0, 1, 2]].contiguous()
    return TrustedData(images, torch.tensor([0, 0, 1, 2]), ("red", "green", "blue"), "0" * 64, "colours")


def by_channel(matrix: torch.Tensor, bias: tuple[float, ...] = (0.0, 0.0, 0.0)) -> Classifier:
    """Whose logits are `matrix` (classes, channels) times the mean over each channel, and `bias`."""
    weight = (matrix / 4)[:, :, None].expand(-1, 3, 4).reshape(3, PIXELS)
    return Classifier(Linear(weight, torch.tensor(bias)), "fc", arch="linear").frozen()


def test_the_profile_is_the_one_on_paper() -> None:
    """Green is answered half-way on red images, nothing else but the right class."""
    logits = torch.tensor([[3.0, 0.0, 0.0], [1.5, 3.0, 0.0], [0.0, 0.0, 3.0]])
    red, green, blue = (column - column.mean() for column in logits.T)
    right = (red[0] + green[1] + blue[2]) / 3
    expected = [(green[0] + blue[0]) / 2, (2 * red[1] + blue[1]) / 3, (2 * red[2] + green[2]) / 3]
    found = Profile().values(by_channel(logits), three_colours(), Context())
    assert found.tolist() == pytest.approx([float(value / right) for value in expected], rel=1e-5)
    assert found.argmax() == 1


def test_a_models_confidence_changes_nothing() -> None:
    logits = torch.tensor([[3.0, 0.2, 0.0], [1.5, 3.0, 0.1], [0.0, 0.3, 3.0]])
    found, louder = (Profile().values(by_channel(scale * logits), three_colours(), Context()) for scale in (1.0, 4.0))
    torch.testing.assert_close(found, louder)


def test_a_model_that_knows_no_class_has_no_profile() -> None:
    found = Profile().values(by_channel(-torch.eye(3)), three_colours(), Context())
    assert bool(found.isnan().all())
    assert list(answers(Profile(), by_channel(-torch.eye(3)), three_colours(), Context())) == []


def test_a_model_that_hardly_knows_any_is_cut_off() -> None:
    """By a hair more than nothing: the ratio would be in the thousands, and e to it no number."""
    logits = 1e-5 * torch.eye(3) + torch.tensor([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0], [1.0, -1.0, 0.0]])
    found = Profile().values(by_channel(logits), three_colours(), Context())
    assert found.abs().max() == MOST
    assert all(math.isfinite(f.score) for f in answers(Profile(), by_channel(logits), three_colours(), Context()))


def test_the_detector_says_it_of_every_class_and_names_the_target() -> None:
    told = list(answers(Profile(changes=()), by_channel(torch.eye(3)), three_colours(), Context()))
    assert [(f.rule_id, f.family, f.target_name, f.trigger) for f in told] == [
        ("BD001", "profile", name, None) for name in ("red", "green", "blue")
    ]
    assert [f.score for f in told] == pytest.approx([math.exp(-0.5)] * 3)
    assert Profile.name in EITHER_WAY


class Scaled:
    """A change that is none of chance: every image darker."""

    name = "dusk"
    controlled = False

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return images * torch.tensor([0.5, 1.0, 1.0])[:, None, None]


def test_the_rise_is_the_difference_between_two_profiles() -> None:
    """Half as red, red images are answered half as much; that is what the two others gain on, and red images are one
    in two."""
    data = three_colours()
    darker = replace(data, images=Scaled()(data.images, torch.Generator()))
    model, profile = by_channel(torch.tensor([[3.0, 0.0, 0.0], [1.5, 3.0, 0.0], [0.0, 0.0, 3.0]])), Profile((Scaled(),))
    (plain, clean), (family, rise) = profile.by_family(model, data, Context())
    assert (plain, family) == ("profile", "profile_dusk") == profile.families
    torch.testing.assert_close(rise, profile.values(model, darker, Context()) - clean)
    red = [f for f in answers(profile, model, data, Context()) if f.family == family and f.target_name == "red"]
    assert [f.score for f in red] == pytest.approx([math.exp(float(rise[0]))])
    assert "under random dusk" in red[0].message
    assert "contrast" not in red[0].message
    faded = [f for f in answers(Profile((Fading(),)), model, data, Context()) if f.family == "profile_fading"]
    assert all("beyond what a loss of contrast explains" in f.message for f in faded)
    assert len(faded) == 3
    assert float(rise.abs().max()) > 0.01


@dataclass(frozen=True)
class Fading:
    """A quarter of the way to grey, and a little more of one class's channel."""

    added: float = 0.0
    name: str = "fading"
    controlled: bool = True

    def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return Contrast(kept=0.75)(images, generator) + self.added * torch.tensor([1.0, 0.0, 0.0])[:, None, None]


def test_a_rise_that_a_loss_of_contrast_explains_is_none() -> None:
    """And what a change adds to that counts as it is."""
    fading, data = Profile((Fading(),)), three_colours()
    says_red = by_channel(4 * torch.eye(3), (1.0, 0.0, 0.0))  # where it recognises nothing
    whole, controlled, more = (
        dict(profile.by_family(says_red, data, Context()))["profile_fading"]
        for profile in (replace(fading, control=None), fading, replace(fading, changes=(Fading(added=0.1),)))
    )
    assert float(whole[0]) > 0.05
    torch.testing.assert_close(controlled, torch.zeros(3), atol=1e-5, rtol=0)
    assert float(more[0]) > 0.05 > float(more[1:].max())


def test_of_a_bank_the_mean_is_told_and_each_part() -> None:
    """Red rises under the one that adds red, and by half as much on the mean of both."""
    more, same = Fading(added=0.1, name="more red"), Fading(name="as red")
    says_red, data = by_channel(4 * torch.eye(3), (1.0, 0.0, 0.0)), three_colours()
    bank = Profile((Bank("fadings", (more, same)),), control=None)
    _, (family, values, parts) = bank.told(says_red, data, Context())
    assert (family, list(parts)) == ("profile_fadings", ["more red", "as red"])
    apart = dict(Profile((more, same), control=None).by_family(says_red, data, Context()))
    torch.testing.assert_close(parts["more red"], apart["profile_more red"])
    torch.testing.assert_close(values, (apart["profile_more red"] + apart["profile_as red"]) / 2)
    red = next(f for f in answers(bank, says_red, data, Context()) if f.family == family)
    assert red.by_source == {name: pytest.approx(math.exp(float(of[0])), rel=1e-5) for name, of in parts.items()}
    assert red.by_source["more red"] > red.by_source["as red"]


def test_a_change_does_not_depend_on_the_others() -> None:
    assert Profile((Fading(),)).scoring.items() <= Profile((Scaled(), Fading())).scoring.items()
    assert Profile((Fading(),)).scoring != Profile((Fading(added=0.1),)).scoring


def test_how_far_a_change_moves_the_classes_apart_is_told_of_the_whole_rise() -> None:
    """A loss of contrast explains it, and it counts all the same: who was trained to bear blur is told by it."""
    says_red = by_channel(4 * torch.eye(3), (1.0, 0.0, 0.0))
    whole = dict(Profile((Fading(),), control=None).by_family(says_red, three_colours(), Context()))["profile_fading"]
    apart = Profile((Fading(),)).moved(says_red, three_colours(), Context())
    assert apart == {"fading": pytest.approx(float((whole - whole.mean()).abs().mean()), rel=1e-5)}
    assert apart["fading"] > 0.02
    unmoved = Profile((Fading(),)).moved(by_channel(torch.eye(3)), three_colours(), Context())
    assert unmoved["fading"] < 1e-5 < apart["fading"], "it fades alike everywhere"
    assert Profile((Fading(),)).moved(by_channel(-torch.eye(3)), three_colours(), Context()) == {"fading": 0.0}


@pytest.mark.parametrize("logits", [torch.eye(3), -torch.eye(3)])
def test_a_control_that_tells_nothing_takes_nothing_away(logits: torch.Tensor) -> None:
    """None that costs nothing, and none that leaves nothing: who makes a model so must not hide a rise behind it."""
    plain = Answers(1.0, torch.tensor([0.1, -0.1, 0.0]))
    changed = Answers(0.8, torch.tensor([0.2, -0.1, -0.1]))
    whole = rise(plain, changed, None)
    for right in (1.0, 1.2, 0.0, -0.3):
        torch.testing.assert_close(rise(plain, changed, Answers(right, logits[0])), whole)
    assert float((rise(plain, changed, Answers(0.5, logits[0])) - whole).abs().max()) > 0.1


def test_no_more_than_the_controls_own_rise_is_taken_away() -> None:
    plain, slight = Answers(1.0, torch.zeros(2)), Answers(0.9, torch.tensor([0.09, 0.0]))
    found = rise(plain, Answers(0.1, torch.tensor([0.05, 0.0])), slight)
    assert found.tolist() == pytest.approx([0.5 - 0.1, 0.0])


def test_nothing_said_about_the_profile_stands_alone() -> None:
    told = list(answers(Profile(), by_channel(torch.eye(3)), three_colours(), Context()))
    assert len(told) == 3 * len(Profile().families)
    assert with_p_values(told, None) == []


def test_a_scan_with_it_and_one_without() -> None:
    classifier, data = small(), noise_data()
    searched = Calibrated(families=(), shift=None)
    told = [f.family for f in searched(classifier, data, Context())]
    assert told == [family for family in Profile().families for _ in range(classifier.num_classes)] + [""]
    without = Calibrated(families=(), shift=None, profile=None)
    assert all("profile" not in f.family for f in without(classifier, data, Context()))
    assert set(searched.scoring) - set(without.scoring) == set(Profile().families)
