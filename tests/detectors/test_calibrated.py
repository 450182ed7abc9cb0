"""The default detector: convicts the planted class of a linear classifier, and nobody in its clean twin."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from toys import Planted, identity, noise_data, plain, small

from audit_cli.classifier import Classifier
from audit_cli.detectors.calibrated import Calibrated, success, uncompared
from audit_cli.detectors.profile import Profile
from audit_cli.detectors.shift import Shift
from audit_cli.detectors.smallness import smallness
from audit_cli.inversion.engine import Search
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race, Rung
from audit_cli.inversion.random_patch import RandomPatch
from audit_cli.inversion.state import State
from audit_cli.policy import Policy
from audit_cli.types import Context, Finding, Trigger, TriggerFamily, TrustedData

FAMILIES = ("additive", "mask")
QUICK = Calibrated(search=Search(images=6, success=0.6, relax=0.4), race=Race(steps=8), references=(identity,))


@pytest.fixture(scope="module")
def verdicts() -> dict[str, list[Finding]]:
    """Findings on the planted classifier and on its clean twin."""
    detector = Calibrated(race=Race(steps=120), references=(identity,))
    return {
        name: list(detector(planted.classifier(), planted.data(), Context()))
        for name, planted in (("planted", Planted()), ("clean", Planted(weight=0)))
    }


def sizes(findings: list[Finding], family: str) -> dict[int | None, float]:
    """Ratio to the median class."""
    return {
        f.target_class: float(f.details["ratio"] or 0) for f in findings if f.rule_id == "BD001" and f.family == family
    }


def scores(findings: list[Finding], family: str) -> dict[int | None, float]:
    return {f.target_class: f.score for f in findings if f.rule_id == "BD001" and f.family == family}


@pytest.mark.parametrize("family", FAMILIES)
def test_convicts_the_planted_class_and_no_other(family: str, verdicts: dict[str, list[Finding]]) -> None:
    found, limit = scores(verdicts["planted"], family), Policy.load("default").rules["BD001"].limit(family)
    assert set(found) == {0, 1, 2, 3}
    assert {c for c, score in found.items() if score >= limit} == {Planted().target}


@pytest.mark.parametrize("family", FAMILIES)
def test_acquits_the_clean_twin(family: str, verdicts: dict[str, list[Finding]]) -> None:
    ratios = sizes(verdicts["clean"], family)
    assert set(ratios) == {0, 1, 2, 3}
    assert max(ratios.values()) < 1.15, "by symmetry every class needs the same"
    assert min(ratios.values()) > 0.85
    assert max(scores(verdicts["clean"], family).values()) < 1.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_ratio_is_the_one_of_the_closed_form(family: str, verdicts: dict[str, list[Finding]]) -> None:
    planted, twin = Planted(), Planted(weight=0)
    small = planted.smallest_mask if family == "mask" else planted.smallest_additive
    usual = twin.smallest_mask if family == "mask" else twin.smallest_additive
    expected = usual(0) / small(planted.target)
    assert sizes(verdicts["planted"], family)[planted.target] == pytest.approx(expected, rel=0.12)


def test_findings_carry_what_evidence_and_repair_need(verdicts: dict[str, list[Finding]]) -> None:
    planted = Planted()
    sizes = [f for f in verdicts["planted"] if f.rule_id == "BD001"]
    assert max(sizes, key=lambda f: f.score).target_class == planted.target
    guilty = max((f for f in sizes if f.family == "mask"), key=lambda f: f.score)
    assert (guilty.target_class, guilty.target_name) == (planted.target, "k2")
    assert guilty.trigger is not None
    assert guilty.trigger.target == planted.target
    assert guilty.trigger_norm == pytest.approx(guilty.trigger.size)
    assert guilty.asr_before is not None
    assert guilty.asr_before >= 0.9
    assert guilty.asr_after == guilty.asr_before, "the reference is the same model"
    gap = next(f for f in verdicts["planted"] if (f.rule_id, f.family, f.target_class) == ("BD002", "mask", 2))
    assert gap.score == 0
    assert [f.score for f in verdicts["planted"] if f.rule_id == "BD107"] == [0]


def test_the_gap_is_what_the_reference_lost() -> None:
    """A reference whose backdoor is cut out: the trigger stops working there, and only there."""
    planted = Planted()

    def cut(pivot: Classifier, trusted: TrustedData, context: Context) -> Classifier:
        return Planted(weight=0).classifier()

    findings = list(
        Calibrated((Mask(),), race=Race(steps=60), references=(cut,))(planted.classifier(), planted.data(), Context())
    )
    gap = next(f for f in findings if (f.rule_id, f.target_class) == ("BD002", planted.target))
    assert gap.asr_before is not None
    assert gap.asr_before > 0.9
    assert gap.asr_after == 0
    assert gap.score == pytest.approx(gap.asr_before)


def test_of_several_references_the_middle_one_decides() -> None:
    planted = Planted()

    def cut(pivot: Classifier, trusted: TrustedData, context: Context) -> Classifier:
        return Planted(weight=0).classifier()

    for references, rest in (((cut, identity, cut), 0.0), ((identity, cut, identity), None)):
        detector = Calibrated((Mask(),), race=Race(steps=60), references=references)
        findings = list(detector(planted.classifier(), planted.data(), Context()))
        found = next(f for f in findings if (f.rule_id, f.target_class) == ("BD002", planted.target))
        assert found.asr_after == (found.asr_before if rest is None else rest)
        assert [found.details[f"reference_{k}"] for k in (1, 2, 3)] == [
            0.0 if reference is cut else found.asr_before for reference in references
        ]


def test_without_references_there_is_no_gap() -> None:
    findings = list(replace(QUICK, references=())(small(), noise_data(), Context()))
    assert {f.rule_id for f in findings} == {"BD001", "BD107"}
    assert all(f.asr_after is None for f in findings)


def test_searching_and_measuring_use_different_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data, seen = noise_data(), {}

    def reference(pivot: Classifier, trusted: TrustedData, context: Context) -> Classifier:
        seen["fit"] = trusted
        return identity(pivot, trusted, context)

    def measured(classifier: Classifier, trigger: Trigger, holdout: TrustedData, context: Context) -> float:
        seen["holdout"] = holdout
        return 0.0

    monkeypatch.setattr("audit_cli.detectors.calibrated.success", measured)
    list(replace(QUICK, references=(reference,))(small(), data, Context()))
    rows = {name: {image.numpy().tobytes() for image in part.images} for name, part in seen.items()}
    assert not rows["fit"] & rows["holdout"]
    assert len(rows["fit"] | rows["holdout"]) == len(data)


def test_same_seed_same_findings() -> None:
    data = noise_data()
    one, again, other = (plain(list(QUICK(small(), data, Context(seed=seed)))) for seed in (3, 3, 4))
    assert one == again
    assert [(f[0], f[1], f[2]) for f in one] == [(f[0], f[1], f[2]) for f in other]
    assert one != other


@pytest.mark.gpu
def test_same_seed_same_findings_on_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    data, device = noise_data(), torch.device("cuda")
    one, again = (plain(list(QUICK(small(), data, Context(device=device)))) for _ in range(2))
    assert one == again


def test_success_leaves_out_images_of_the_target() -> None:
    """A trigger that does nothing succeeds as often as the model errs towards the target, never by being right."""
    planted = Planted()
    nothing = {"mask": torch.full((1, 1, 10, 8), -50.0), "pattern": torch.zeros(1, 3, 10, 8)}
    trigger = Trigger(Mask(), nothing, planted.target, 0.0)
    assert success(planted.classifier(), trigger, planted.data(), Context()) == 0.0


def test_classes_without_a_trigger_are_counted() -> None:
    finding = uncompared({1, 4}, 10, 0.95)
    assert (finding.rule_id, finding.score) == ("BD107", 2)
    assert "2 of 10" in finding.message
    assert finding.details["searched"] == 8


@dataclass(frozen=True)
class OneReached(Race):
    """A race in which class 0 alone found a trigger, of size 1.8."""

    def run(
        self, suspect: Classifier, family: TriggerFamily, trusted: TrustedData, search: Search, context: Context
    ) -> tuple[State, Tensor]:
        state = search.start(family, torch.arange(5), trusted.shape, context)
        return replace(state, best_size=torch.tensor([1.8, *[torch.inf] * 4])), torch.ones(5, dtype=torch.bool)


@pytest.mark.parametrize(("family", "others"), [(RandomPatch(), 9.0), (Mask(), 1.8)], ids=["bounded", "unbounded"])
def test_classes_without_a_trigger_count_as_the_ceiling_or_the_largest(family: TriggerFamily, others: float) -> None:
    findings = list(Calibrated((family,), race=OneReached(), references=(identity,))(small(), noise_data(), Context()))
    expected = smallness(torch.tensor([1.8, *[others] * 4]), torch.ones(5, dtype=torch.bool), 5).score.tolist()
    if family.name == "mask":  # how large the others would have to be is not known
        expected[1:] = [0] * 4
    assert scores(findings, family.name) == {k: pytest.approx(score) for k, score in enumerate(expected)}
    assert (expected[0] >= 1.5) == (family.name == "random_patch")
    assert max(expected[1:]) < 1
    assert sum(f.score for f in findings if f.rule_id == "BD107") == 4


def test_an_unreachable_class_is_reported_and_acquits_nobody() -> None:
    planted = Planted(weight=0)
    classifier = planted.classifier()
    classifier.head.bias.data[1] -= 1e4
    detector = Calibrated(race=Race(steps=20), references=(identity,), profile=None)
    findings = list(detector(classifier, planted.data(), Context()))
    assert next(f.score for f in findings if f.rule_id == "BD107") >= 1
    unreached = {f.family: f.score for f in findings if f.rule_id == "BD001" and f.target_class == 1}
    assert unreached.pop("wave") < 1  # it needs the largest amplitude at least
    assert set(unreached.values()) == {0}


def test_features_are_compared_for_the_classes_that_a_calibration_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan races masks, too, and `calibrate` does not: their finalists must not add to the classes."""
    sought: list[list[int]] = []

    def sizes(self: Shift, suspect: Classifier, trusted: TrustedData, classes: Tensor, context: Context) -> Tensor:
        sought.append(classes.tolist())
        return torch.full((len(classes), suspect.num_classes), 1.0)

    monkeypatch.setattr(Shift, "sizes", sizes)
    planted = Planted()
    narrow = replace(QUICK, race=Race(rungs=(Rung(None, 8), Rung(1, 8)), sample=1), profile=None)
    for detector in (narrow, narrow.compared):
        list(detector(planted.classifier(), planted.data(), Context()))
    assert sought[0] == sought[1]


def test_without_searches_it_measures_what_a_calibration_of_all_compares() -> None:
    """And no features where the race would tell of which classes."""
    planted, whole = Planted(), replace(QUICK, profile=Profile(changes=()))
    measured = whole.measured
    assert measured.scoring.items() < whole.scoring.items()
    assert measured.scoring.keys() == {"features", "profile"}
    scored, found = (list(detector(planted.classifier(), planted.data(), Context())) for detector in (whole, measured))
    assert [f for f in scored if f.family in measured.scoring] == [f for f in found if f.rule_id == "BD001"]
    assert [(f.rule_id, f.details["searched"]) for f in found if f.rule_id != "BD001"] == [("BD107", 0)]
    many = replace(measured, race=Race(rungs=(Rung(None, 8), Rung(1, 8)), sample=1))
    families = {f.family for f in many(planted.classifier(), planted.data(), Context())}
    assert families == {"profile", ""}
