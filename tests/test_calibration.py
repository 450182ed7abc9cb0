"""Calibrations: p-values, domains, and what is refused as one."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import torch
from toys import Planted

from audit_cli.calibration import (
    Calibration,
    Clean,
    Domain,
    candidates,
    clean_model,
    fingerprints,
    kind,
    read,
    scores_of,
    with_p_values,
)
from audit_cli.conformal import (
    MOST,
    SLACK,
    conformal,
    each_standard,
    families_of,
    following,
    on_one_scale,
    standard,
    statistic,
    ways,
)
from audit_cli.detectors import REFERENCES
from audit_cli.detectors.calibrated import Calibrated
from audit_cli.detectors.profile import Profile
from audit_cli.errors import AuditError, PolicyError
from audit_cli.inversion.engine import Search
from audit_cli.inversion.racing import Race, Rung
from audit_cli.judgement import judge
from audit_cli.policy import Policy
from audit_cli.types import Finding

DOMAIN = Domain("resnet-cifar", 32, 32, ("bird", "cat"))
SCORES = (0.9, 1.0, 1.1, 1.2)
MARKS = {"additive": "0" * 16, "wave": "1" * 16}


def calibration(domain: Domain = DOMAIN, scoring: Mapping[str, str] = MARKS) -> Calibration:
    """Birds need small triggers on every model, cats large ones; `additive` does not tell models apart."""
    models = tuple(
        Clean(f"{k:064x}", "resnet8-cifar", 0.8, {"additive": (2 * score, score / 2), "wave": (0.5, 0.5)})
        for k, score in enumerate(SCORES)
    )
    return Calibration("test", domain, scoring, "f" * 64, 500, models)


def p_of(bird: float, cat: float) -> dict[tuple[str, str], float]:
    return calibration().p_values({("additive", "bird"): bird, ("additive", "cat"): cat})


def test_a_score_is_compared_with_the_same_class() -> None:
    assert p_of(2.1, 0.52)["additive", "bird"] > 0.4, "ordinary for a bird"
    assert p_of(2.1, 2.1)["additive", "cat"] == pytest.approx(0.2), "of five models the most unusual: a cat like a bird"
    assert p_of(2.1, 2.1)["additive", "bird"] > 0.4


@pytest.mark.parametrize(("bird", "cat"), [(2.05, 0.51), (1.9, 0.7), (2.6, 0.61), (0.3, 0.3)])
def test_the_p_value_is_the_rank_of_the_largest_deviation(bird: float, cat: float) -> None:
    """Every member of the bag against the others, written out. In one family, whose scale changes no rank."""
    bag = [(math.log(2 * s), math.log(s / 2)) for s in SCORES] + [(math.log(bird), math.log(cat))]

    def deviation(k: int, c: int) -> float:
        others = [member[c] for i, member in enumerate(bag) if i != k]
        return (bag[k][c] - statistics.fmean(others)) / (statistics.pstdev(others) + SLACK)

    models = tuple(replace(m, scores={"additive": m.scores["additive"]}) for m in calibration().models)
    p = replace(calibration(), models=models).p_values({("additive", "bird"): bird, ("additive", "cat"): cat})
    largest = [max(deviation(k, 0), deviation(k, 1)) for k in range(4)]
    for c, name in enumerate(DOMAIN.classes):
        expected = (1 + sum(z >= deviation(4, c) for z in largest)) / 5
        assert p["additive", name] == pytest.approx(expected)


def test_a_class_whose_clean_scores_agree_is_judged_by_the_familys_spread() -> None:
    """No clean model gets within reach of a cat, so all have the same score there; birds differ by a tenth or two."""
    models = tuple(replace(m, scores={"additive": (s, 0.5)}) for m, s in zip(calibration().models, SCORES, strict=True))
    here = replace(calibration(), models=models)
    assert here.p_values({("additive", "bird"): 1.0, ("additive", "cat"): 0.52})["additive", "cat"] > 0.2, (
        "near, as birds"
    )
    assert here.p_values({("additive", "bird"): 1.0, ("additive", "cat"): 1.0})["additive", "cat"] == pytest.approx(0.2)


def test_p_values_of_clean_models_are_never_too_small() -> None:
    """Exchangeability: P(p <= α) <= α, over many draws of the calibration and a further clean model."""
    g = torch.Generator().manual_seed(0)
    small, draws, n = 0, 1500, 19
    for _ in range(draws):
        values = (torch.randn(n + 1, 2, generator=g) * torch.tensor([0.1, 0.4])).exp().tolist()
        models = tuple(Clean("0" * 64, "a", 0.9, {"additive": tuple(value)}) for value in values[:n])
        suspect = dict(zip((("additive", "bird"), ("additive", "cat")), values[n], strict=True))
        small += min(replace(calibration(), models=models).p_values(suspect).values()) <= 0.05 + 1e-9
    assert small / draws == pytest.approx(0.05, abs=0.015)


def test_a_class_is_judged_by_its_two_largest_deviations() -> None:
    """Families of different spread on one scale; of `features` the largest source counts, of `profile` either sign."""
    rows = ("noise", "features", "features from bird", "profile")
    g = torch.Generator().manual_seed(0)
    members = torch.randn(6, 4, 2, generator=g, dtype=torch.float64) * torch.tensor([3.0, 0.1, 0.1, 1.0])[:, None]
    suspect = torch.tensor([[9.0, 0.0], [0.0, 0.3], [0.4, math.nan], [-2.0, -5.0]], dtype=torch.float64)

    def scaled(own: list[float], of_members: torch.Tensor) -> list[float]:
        values = of_members.flatten().tolist()
        return [(x - statistics.fmean(values)) / (statistics.stdev(values) + SLACK) for x in own]

    noise = scaled([9.0, 0.0], members[:, 0])
    features = scaled([0.4, 0.3], members[:, 1:3].amax(1))
    profile = scaled([2.0, 5.0], members[:, 3].abs())
    t = statistic(suspect[None], members, rows)[0] * usual(members, rows)
    assert families_of(rows) == ("noise", "features", "profile")
    for c in range(2):
        u = sorted((noise[c], features[c], profile[c]), reverse=True)
        sums = {u[0]: u[0] + max(0, u[1]), u[1]: u[1] + max(0, u[2]), u[2]: u[2]}
        expected = [sums[noise[c]], sums[features[c]], sums[profile[c]]]
        assert t[:, c].tolist() == pytest.approx(expected)
        assert float(t[:, c].max()) == pytest.approx(u[0] + u[1])


def usual(members: torch.Tensor, rows: Sequence[str]) -> float:
    """What statistics are divided by where families are put together in one way only."""
    u = on_one_scale(members, members, rows)
    largest = (u + following(u)[0]).nan_to_num(-math.inf).amax((1, 2))
    return float(largest.square().mean().sqrt()) + SLACK


def test_what_is_searched_hides_nothing_that_is_measured() -> None:
    """Where masks scatter far on clean models, what one pass tells is judged without them; masks are judged beside it,
    and each way has the clean models' largest for its unit."""
    g = torch.Generator().manual_seed(0)
    rows = ("mask", "features", "profile")
    members = torch.randn(40, 3, 4, generator=g, dtype=torch.float64)
    members[0, 0, 1] = 40.0  # a class that has a small mask on one clean model
    measured = torch.tensor([[0.0] * 4, [5.0, 0, 0, 0], [5.0, 0, 0, 0]], dtype=torch.float64)
    t = statistic(measured[None], members, rows)[0]
    alone = statistic(measured[None, 1:], members[:, 1:], rows[1:])[0]
    torch.testing.assert_close(t[1:, 0], alone[:, 0], msg="as if no mask had been searched")
    masked = torch.tensor([[80.0, 0, 0, 0], [0.0] * 4, [0.0] * 4], dtype=torch.float64)
    u = on_one_scale(masked[None], members, rows)[0]
    assert float(statistic(masked[None], members, rows)[0, 0, 0]) == pytest.approx(
        float(u[0, 0] + max(0.0, float(u[1:, 0].max()))) / usual(members, rows)
    )
    assert ways(families_of(rows)) == [[0, 1, 2], [1, 2]]
    assert ways(("mask", "additive")) == [[0, 1]]
    assert ways(("features", "profile")) == [[0, 1]]
    told = conformal(measured, members, rows)
    assert float(told.p[1, 0]) == pytest.approx(2 / 41), "only the model with that mask is odder"
    beside = {1: int(told.second[1, 0]), 2: int(told.second[2, 0])}
    assert beside in ({1: 2, 2: -1}, {1: -1, 2: 1}), "the larger has the other beside it, and neither the mask"


def test_what_all_classes_deviate_by_is_taken_off_and_no_more_than_some() -> None:
    """The third most unusual class tells; a model obeyed in many classes stays odd."""
    members = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64).repeat_interleave(4).reshape(3, 1, 4)
    scale = float(members.std()) + SLACK
    suspects = torch.tensor([[[4.0, 2.0, 1.0, 0.0]], [[9.0, 9.0, 9.0, 0.0]], [[4.0, 2.0, -1.0, -1.0]]]).double()
    t = statistic(suspects, members, ("mask",))[:, 0] * usual(members, ("mask",))
    assert t[0].tolist() == pytest.approx([3 / scale, 1 / scale, 0.0, -1 / scale])
    assert t[1].tolist() == pytest.approx([9 / scale - MOST] * 3 + [-MOST])
    assert t[2].tolist() == pytest.approx([4 / scale, 2 / scale, -1 / scale, -1 / scale]), "nothing in common"


def test_many_models_are_compared_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    models = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    models[2, 1, 3] = math.nan
    whole = each_standard(models)
    monkeypatch.setattr("audit_cli.conformal.FLOATS_AT_ONCE", 200)
    torch.testing.assert_close(each_standard(models), whole, equal_nan=True)
    for k, model in enumerate(models):
        others = torch.cat([models[:k], models[k + 1 :]])
        torch.testing.assert_close(whole[k], standard(model, others), equal_nan=True)


def test_a_family_without_a_score_takes_nothing_from_the_others() -> None:
    z = torch.tensor([[[1.0], [2.0]], [[3.0], [5.0]], [[2.0], [4.0]]], dtype=torch.float64)
    lone = torch.tensor([[[9.0], [math.nan]]], dtype=torch.float64)
    t = statistic(lone, z, ("mask", "warp"))
    assert float(t[0, 0, 0]) * usual(z, ("mask", "warp")) == pytest.approx((9 - 2) / (1 + SLACK))
    assert bool(t[0, 1].isnan().all())


def test_two_doubts_about_one_class_weigh_more_than_two_about_two() -> None:
    g = torch.Generator().manual_seed(0)
    models = tuple(
        Clean("0" * 64, "a", 0.9, dict(zip(("additive", "wave"), map(tuple, values.tolist()), strict=True)))
        for values in (torch.randn(40, 2, 2, generator=g) * 0.1).exp()
    )
    here, odd = replace(calibration(), models=models), math.exp(0.22)
    one = here.p_values(
        {("additive", "bird"): odd, ("wave", "bird"): odd, ("additive", "cat"): 1.0, ("wave", "cat"): 1.0}
    )
    two = here.p_values(
        {("additive", "bird"): odd, ("wave", "bird"): 1.0, ("additive", "cat"): 1.0, ("wave", "cat"): odd}
    )
    assert min(one.values()) <= 0.05 < min(two.values())


def test_a_p_value_comes_with_the_family_its_class_is_the_next_most_unusual_in() -> None:
    g = torch.Generator().manual_seed(0)
    families = ("additive", "features", "profile")
    models = tuple(
        Clean("0" * 64, "a", 0.9, dict(zip(families, map(tuple, values.tolist()), strict=True)))
        for values in (torch.randn(40, 3, 2, generator=g) * 0.1).exp()
    )
    here = replace(calibration(), models=models)
    odd = {"additive": 0.4, "features": 0.2, "profile": -0.3}  # at cat; of profiles a small one is odd, too
    scores = {(f, c): math.exp(odd[f] * (c == "cat")) for f in families for c in ("bird", "cat")}
    second = {key: told.beside for key, told in here.compare(scores).items()}
    assert (second["additive", "cat"], second["profile", "cat"]) == ("profile", "features")
    assert second["features", "cat"] is None, "in no other is the class less unusual"
    told = [Finding("BD001", s, "", family=f, target_name=c) for (f, c), s in scores.items()]
    assert {(f.family, f.target_name): f.beside for f in with_p_values(told, here)} == second


def test_a_profile_counts_both_ways_and_only_beside_clean_models() -> None:
    models = tuple(
        replace(m, scores={"profile": (0.9 * s, s)}) for m, s in zip(calibration().models, SCORES, strict=True)
    )
    here = replace(calibration(), models=models)
    for odd in (0.3, 3.0):
        p = here.p_values({("profile", "bird"): odd, ("profile", "cat"): 1.05})
        assert p["profile", "bird"] == pytest.approx(0.2)
        assert p["profile", "cat"] > 0.4
    told = Finding("BD001", 3.0, "", family="profile", target_class=0, target_name="bird")
    known = [told, replace(told, family="additive")]
    assert [f.family for f in with_p_values(known, None)] == ["additive"]
    assert [f.p_value for f in with_p_values([told], here)] == [pytest.approx(0.2)]


def test_a_finding_has_the_smallest_p_value_of_its_sources() -> None:
    """Ordinary over all sources, but not for one of them."""
    names = ("features", "features from bird")
    models = tuple(
        replace(m, scores=dict(zip(names, ((s, s / 2), (None, s)), strict=True)))
        for m, s in zip(calibration().models, SCORES, strict=True)
    )
    here = replace(calibration(), models=models)
    cat = Finding("BD001", 0.5, "", family="features", target_class=1, target_name="cat", by_source={"bird": 4.0})
    found = with_p_values([cat, replace(cat, target_name="bird", score=1.0, by_source={})], here)
    assert found[0].p_value == pytest.approx(0.2)
    assert found[0].details["unusual_source"] == "bird"
    assert found[1].p_value is not None
    assert found[1].p_value > 0.4
    assert "unusual_source" not in found[1].details
    (reason,) = judge([replace(found[0], p_value=0.01)], Policy.load("default"), "", date(2026, 1, 1))[2]
    assert "p-value 0.01 among clean models from class ‘bird’, 0.05 accepted" in reason
    assert scores_of([cat]) == {("features", "cat"): 0.5, ("features from bird", "cat"): 4.0}


def test_two_families_that_are_odd_at_the_same_pair_weigh_more_than_at_two() -> None:
    """What images of one class obey is odd from that class in both."""
    generator, sources = torch.Generator().manual_seed(0), ("dog", "emu", "fox")
    rows = [f"{family} from {source}" for family in ("features", "source_mask") for source in sources]
    clean = 0.1 * torch.randn(40, len(rows), 4, generator=generator, dtype=torch.float64)
    suspect = torch.zeros(len(rows), 4, dtype=torch.float64)
    same, apart = suspect.clone(), suspect.clone()
    same[rows.index("features from dog"), 2] = same[rows.index("source_mask from dog"), 2] = 0.3
    apart[rows.index("features from dog"), 2] = apart[rows.index("source_mask from fox"), 2] = 0.3
    members = each_standard(clean)
    t_same, t_apart = (statistic(standard(s, clean)[None], members, rows)[0] for s in (same, apart))
    f = families_of(rows).index("source_mask")
    assert float(t_same[f, 2]) > float(t_apart[f, 2]) + 0.3
    assert int(t_same.amax(0).argmax()) == 2
    told = conformal(same, clean, rows)
    assert float(told.p[f, 2]) == pytest.approx(1 / 41)
    assert rows[int(told.row[f, 2])] == "source_mask from dog"
    unknown = same.clone()
    unknown[: len(sources)] = math.nan
    assert bool(statistic(standard(unknown, clean)[None], members, rows)[0][f].isfinite().all())


def test_classes_that_few_models_have_are_compared_with_the_family() -> None:
    """As in a race: each model has scores for the classes that came through."""
    models = [
        replace(model, scores={"additive": (1.0 + k / 10, None) if k else (None, 1.0)})
        for k, model in enumerate(calibration().models)
    ]
    found = replace(calibration(), models=tuple(models)).p_values({("additive", "cat"): 9.0, ("warp", "cat"): 1.0})
    assert found == {("additive", "cat"): pytest.approx(0.2)}, "cat is compared; warp is no family of this calibration"


def test_the_statement_says_what_alpha_guarantees() -> None:
    told = calibration().statement(0.4, {"additive", "mask"})
    assert (told["fpr"], told["clean_models"]) == (pytest.approx(2 / 5), 4)
    assert str(told["statement"]).endswith("whose rate is not in this: mask")
    assert str(calibration().statement(0.4, {"wave"})["statement"]).endswith("at most")
    assert calibration().statement(None, {"additive"})["fpr"] is None


@pytest.mark.parametrize(
    ("accuracy", "images", "like_them"),
    [
        (0.76, 500, True),
        (0.84, 500, True),
        (0.74, 500, True),
        (0.70, 500, False),
        (0.92, 500, False),
        (0.74, 20_000, False),
        (0.76, 20_000, True),
    ],
)
def test_a_network_of_another_accuracy_is_of_another_kind(accuracy: float, images: int, like_them: bool) -> None:
    """Five points to either side, and what so many images leave open."""
    assert (calibration().refusal(accuracy, images) is None) == like_them


def test_a_network_less_sure_of_its_answers_is_of_another_kind() -> None:
    """Mixtures of images teach that; it makes a clean network look poisoned."""
    models = tuple(replace(m, overconfidence=0.01 * k) for k, m in enumerate(calibration().models))
    here = replace(calibration(), models=models)
    for sure, like_them in ((0.0, True), (0.075, True), (-0.045, True), (-0.06, False), (0.09, False)):
        assert (here.refusal(0.8, 500, None, sure) is None) == like_them, sure
    assert "-14.0% from its accuracy, where its clean ones stand for -5.0% to +8.0%" in str(
        here.refusal(0.8, 500, None, -0.14)
    )
    assert here.refusal(0.8, 500) is None, "not asked"
    assert calibration().refusal(0.8, 500, None, -0.5) is None, "not measured on the clean models"


def test_scores_from_far_fewer_images_are_not_compared() -> None:
    images = calibration().images
    assert calibration().refusal(0.8, images * 4 // 5) is None
    assert calibration().refusal(0.8, images // 2) is not None


def test_who_bears_random_changes_is_of_another_kind() -> None:
    """Noise moves the classes of every clean model apart by 0.2 or more; this one's by less than 0.7 of that."""
    models = tuple(replace(m, moved={"noise": 0.2 + k / 100}) for k, m in enumerate(calibration().models))
    here = replace(calibration(), models=models)
    for apart, like_them in ((0.2, True), (0.15, True), (0.13, False), (0.0, False), (2.0, True)):
        assert (here.refusal(0.8, 500, {"noise": apart}) is None) == like_them
    assert calibration().refusal(0.8, 500, {"noise": 0.0}) is None, "not measured on the clean models"


def test_a_refusal_says_why() -> None:
    here = replace(calibration(), models=tuple(replace(m, moved={"noise": 0.2}) for m in calibration().models))
    assert here.refusal(0.8, 500, {"noise": 0.2}) is None
    assert "right on 92.0%, where its clean ones stand for 75.0% to 85.0%" in str(here.refusal(0.92, 500))
    assert "250 trusted images, where 400 are needed" in str(here.refusal(0.8, 250))
    assert "random noise moves" in str(here.refusal(0.8, 500, {"noise": 0.1}))


def test_classes_of_one_name_cannot_be_kept_apart() -> None:
    """The second would get the first one's p-value."""
    twins = replace(DOMAIN, classes=("crane", "crane"))
    assert twins.ambiguous
    assert not DOMAIN.ambiguous
    finding = Finding("BD001", 9.0, "", family="additive", target_class=0, target_name="crane")
    with pytest.raises(AuditError, match="the same name"):
        clean_model("0" * 64, Planted().classifier(), 0.9, [finding], twins, {})


def test_too_few_models_cannot_decide() -> None:
    assert not calibration().resolves(0.05)
    assert calibration().resolves(0.2)
    assert calibration().resolves(None)


@pytest.mark.parametrize(("p", "alpha", "fired"), [(0.04, 0.05, True), (0.06, 0.05, False), (None, 0.05, False)])
def test_a_p_value_decides_in_the_threshold_s_place(p: float | None, alpha: float, fired: bool) -> None:
    policy = Policy.load("default")
    rules = {**policy.rules, "BD001": replace(policy.rules["BD001"], alpha=alpha)}
    finding = Finding("BD001", 1.2, "small", family="additive", p_value=p)
    verdict, _, reasons, _ = judge([finding], replace(policy, rules=rules), "", date(2026, 1, 1))
    assert (verdict == "FAIL") == fired
    assert ("p-value 0.04" in reasons[0]) == fired


def test_a_low_threshold_does_not_overrule_a_common_p_value() -> None:
    finding = Finding("BD001", 9.0, "small", family="additive", p_value=0.5)
    assert judge([finding], Policy.load("default"), "", date(2026, 1, 1))[0] == "PASS"


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("resnet20-cifar", "resnet-cifar"),
        ("resnet8-w24-cifar", "resnet-cifar"),
        ("resnet18", "resnet"),
        ("hf-resnet-basic-2-2-2-2", "hf-resnet-basic"),
        ("hf-vit-12-768", "hf-vit"),
        ("package.module:factory2", "package.module:factory"),
    ],
)
def test_the_kind_of_an_architecture_leaves_sizes_out(arch: str, name: str) -> None:
    assert kind(arch) == name


def test_the_domain_of_a_model() -> None:
    toy = Planted()
    assert Domain.of(toy.classifier(), toy.data()) == Domain("linear", 10, 8, ("k0", "k1", "k2", "k3"))


def test_a_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(calibration().document()))
    assert read(path) == calibration()
    assert read(path).digest == calibration().digest != replace(calibration(), name="other").digest


def test_candidates_have_the_same_domain_and_detector(tmp_path: Path) -> None:
    detector = Calibrated()
    marks = {family: mark for family, mark in fingerprints(detector).items() if family in MARKS}
    assert marks.keys() == MARKS.keys()
    path = tmp_path / "c.json"
    path.write_text(json.dumps(calibration(replace(DOMAIN, classes=("bird", "dog")), marks).document()))
    few, more = replace(DOMAIN, classes=("bird", "dog")), replace(DOMAIN, classes=("bird", "cat", "dog"))
    assert len(candidates([path, path], few, [detector])) == 2
    assert candidates([path], more, [detector]) == []
    assert candidates([path], few, []) == []
    assert candidates([path], few, [replace(detector, fit_share=0.4)]) == []


def test_only_families_that_are_scored_alike_are_compared(tmp_path: Path) -> None:
    detector, path = Calibrated(), tmp_path / "c.json"
    marks = {**MARKS, "wave": fingerprints(detector)["wave"]}
    whole = calibration(scoring=marks)
    path.write_text(json.dumps(whole.document()))
    (part,) = candidates([path], DOMAIN, [detector])
    assert part == whole.only({"wave"})
    assert part.rows == ("wave",)
    assert part.p_values({("additive", "cat"): 9.0, ("wave", "cat"): 9.0}).keys() == {("wave", "cat")}
    assert whole.only({"additive", "wave"}) == whole


def test_scores_for_one_source_go_with_their_family() -> None:
    scores = {"features": (1.0, 1.0), "features from dog": (1.0, 2.0)}
    models = [replace(m, scores=scores) for m in calibration().models]
    here = replace(calibration(), models=(*models, calibration().models[0]), scoring={**MARKS, "features": "2" * 16})
    assert here.only({"features"}).rows == ("features", "features from dog")
    assert here.only({"wave", "additive"}).rows == ("additive", "wave")


def test_what_a_family_does_not_depend_on_has_no_part_in_its_fingerprint() -> None:
    usual = fingerprints(Calibrated())
    assert usual == fingerprints(Calibrated(references=REFERENCES))
    assert fingerprints(object()) == {}
    assert usual.keys() == {"additive", "wave", "source_mask", "features", *Profile().families}

    def other(detector: Calibrated) -> set[str]:
        return {family for family, mark in fingerprints(detector).items() if mark != usual[family]}

    assert other(replace(Calibrated(), race=Race(each_pair=Rung(None, 60, 3)))) == {"source_mask"}
    assert other(replace(Calibrated(), race=Race(starts=2))) == {"additive", "features"}
    assert other(replace(Calibrated(), race=Race(steps=200))) == {"additive", "source_mask", "features"}
    assert other(replace(Calibrated(), race=Race(sample=9))) == {"additive", "wave", "features"}
    assert other(replace(Calibrated(), profile=Profile(control=None))) == {"profile_reflection", "profile_warp"}
    assert other(replace(Calibrated(), search=Search(images=5))) == {"additive", "wave", "source_mask", "features"}


def test_only_bd001_gets_a_p_value() -> None:
    findings = [
        Finding(rule, 2.1, "", family="additive", target_class=1, target_name="CAT") for rule in ("BD001", "BD002")
    ]
    assert [f.p_value for f in with_p_values(findings, calibration())] == [pytest.approx(0.2), None]
    assert with_p_values([replace(findings[0], target_name="dog")], calibration())[0].p_value is None
    assert with_p_values(findings, None) == findings


def test_masks_and_warps_are_left_to_their_thresholds() -> None:
    """Even where a calibration has them."""
    models = tuple(replace(m, scores={**m.scores, "mask": (1.0, 1.0)}) for m in calibration().models)
    here = replace(calibration(), models=models)
    told = [Finding("BD001", 9.0, "", family=f, target_name="cat") for f in ("additive", "mask", "warp")]
    assert [f.p_value is None for f in with_p_values(told, here)] == [False, True, True]


def test_the_entry_of_a_model_has_a_place_for_every_class() -> None:
    toy = Planted().classifier()
    of = (("additive", "cat", 0.5), ("additive", "Bird", 0.9), ("wave", "cat", 0.7), ("mask", "cat", 0.8))
    findings = [Finding("BD001", score, "", family=f, target_name=c) for f, c, score in of]
    other = Finding("BD002", 5.0, "", family="additive", target_name="cat")
    assert clean_model("0" * 64, toy, 0.9, [*findings, other], DOMAIN, {}).scores == {
        "additive": (0.9, 0.5),
        "wave": (None, 0.7),
    }
    with pytest.raises(AuditError, match="no BD001 score"):
        clean_model("0" * 64, toy, 0.9, [Finding("BD107", 1.0, "")], DOMAIN, {})


def test_a_file_whose_scores_fit_no_class(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    document = calibration().document()
    path.write_text(json.dumps(document | {"domain": {**document["domain"], "classes": ["a", "b", "c"]}}))  # type: ignore[dict-item]
    with pytest.raises(PolicyError, match="for each of 3 classes"):
        read(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": []}, "models"),
        ({"extra": 1}, "extra"),
        ({"schema_version": 1}, "schema_version"),
        ({"scoring": {"wave": "x"}}, "wave"),
        ({"scoring": {}}, "scoring"),
        ({"domain": {"arch": "a", "height": 32, "width": 32}}, "classes"),
    ],
)
def test_what_is_no_calibration(tmp_path: Path, change: dict[str, object], said: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(calibration().document() | change))
    with pytest.raises(PolicyError, match=said):
        read(path)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": NaN}', b'{"a": 1, "a": 2}', b"\xff"])
def test_hostile_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(content)
    with pytest.raises(PolicyError, match=r"c\.json"):
        read(path)
    with pytest.raises(PolicyError, match="cannot be read"):
        read(tmp_path / "none.json")
