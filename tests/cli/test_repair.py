"""`audit-cli repair` from outside: which weights it hands out, and with which code it ends.

Detector and ladder are stubs that answer at once; reading, splitting, writing, reading back and judging are real.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from audit_cli import audit, mend
from audit_cli.classifier import Classifier
from audit_cli.cli import run
from audit_cli.detectors import DETECTORS
from audit_cli.errors import BudgetExceeded
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.mask import Mask
from audit_cli.mend import Relearning
from audit_cli.repairs import climbing, ladder
from audit_cli.repairs.acquittal import Shown
from audit_cli.repairs.attempt import Case
from audit_cli.repairs.holdout import Cost
from audit_cli.repairs.inside import Led
from audit_cli.repairs.ladder import FURTHER, SLIGHTLY, Rung
from audit_cli.repairs.relearning import Relearned
from audit_cli.repairs.unlearning import Survey, Unlearning
from audit_cli.repairs.watch import Watch, unwatched
from audit_cli.resources import bundled, violations
from audit_cli.types import Context, Finding, Trigger, TrustedData

MODEL, TRUSTED = bundled("fixtures") / "digits-clean.safetensors", bundled("fixtures") / "digits-trusted.npz"
MARK = 3.0  # a repaired model is known by this bias of its last class


@dataclass
class Stub:
    """Suspects class 3 of every model but the marked one; `lenient`: of the first it sees only."""

    lenient: bool = False
    before: float = 9.0
    after: float = 1.0
    traceless: bool = False  # what convicts is no trigger
    p_value: float | None = None  # of what convicts, and the lowest threshold does not
    pattern: bool = False  # what convicts fills the image
    seeds: list[int] = field(default_factory=list)
    seen: list[int] = field(default_factory=list)

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        self.seeds.append(context.seed)
        self.seen.append(len(trusted))
        marked = float(suspect.head.bias[-1].detach()) == MARK or (self.lenient and len(self.seeds) > 1)
        score = self.after if marked else self.before
        nothing = {"mask": torch.full((1, 1, *trusted.shape[1:]), -20.0), "pattern": torch.zeros(1, *trusted.shape)}
        found = Trigger(Mask(), nothing, 3, 1.0)
        if self.pattern:
            found = Trigger(Additive(), {"pattern": nothing["pattern"]}, 3, 1.0)
        trigger = None if self.traceless else found
        family = "features" if self.traceless else found.family.name
        p = None if marked else self.p_value
        score = score if self.p_value is None else 1.1
        yield Finding("BD001", score, "a trigger", "stub", family, 3, "3", trigger_norm=1.0, trigger=trigger, p_value=p)
        yield Finding("BD107", 0.0, "all classes", "stub", details={"searched": suspect.num_classes})


@dataclass(frozen=True)
class Marking:
    """The repair that leaves its mark, and whatever `damage` does to the head."""

    damage: float = 0.0
    mark: float = MARK
    fail: BaseException | None = None

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        if self.fail:
            raise self.fail
        repaired = pivot.clone()
        with torch.no_grad():
            repaired.head.weight.mul_(20)  # so that the mark changes no answer
            repaired.head.bias.mul_(20)
            repaired.head.weight[0] *= 1 - self.damage
            repaired.head.bias[-1] = self.mark
        watch(0, repaired)
        return repaired


@dataclass(frozen=True)
class Outcome:
    code: int
    error: str
    out: Path

    @property
    def verdict(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((self.out / "verdict.json").read_text())
        assert violations(document, "verdict") == []
        assert document["exit_code"] == self.code
        return document

    @property
    def weights(self) -> list[Path]:
        return list(self.out.rglob("*.safetensors"))


Repair = Callable[..., Outcome]


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub()
    monkeypatch.setitem(DETECTORS, "calibrated", lambda: stub)  # type: ignore[arg-type]
    monkeypatch.setattr(Relearning, "__call__", lambda self, *_: None)
    return stub


@pytest.fixture
def repair(
    tmp_path: Path, detector: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Repair:
    def call(
        *options: str,
        rungs: tuple[Rung, ...] = (Rung("marking", Marking()),),
        trusted: Path = TRUSTED,
        model: Path = MODEL,
    ) -> Outcome:
        monkeypatch.setattr(ladder, "LADDER", rungs)
        out = tmp_path / "out"
        arguments = ["repair", str(model), "--trusted", str(trusted), "--out", str(out), "--device", "cpu", "--quiet"]
        code = run([*arguments, "--dtype", "float32", "--mean", "0", "--std", "1", *options])
        captured = capsys.readouterr()
        assert captured.out == ""
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
        return Outcome(code, captured.err, out)

    return call


def test_unlearning_is_told_what_the_scan_convicted_and_surveys_once(
    repair: Repair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its score of 9 for class 3; what an Unlearning of one's own already accuses is replaced."""
    seen: list[Unlearning] = []
    surveys: list[Survey] = []

    def called(self: Unlearning, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch) -> Classifier:
        seen.append(self)
        return Marking(mark=0.0 if self.steps == 7 else MARK)(pivot, trusted, context, watch)

    def survey(self: Unlearning, pivot: Classifier, trusted: TrustedData, context: Context) -> Survey:
        surveys.append(Survey((), (), {"mask": 1.0}))
        return surveys[-1]

    monkeypatch.setattr(Unlearning, "__call__", called)
    monkeypatch.setattr(Unlearning, "survey", survey)
    assert repair(rungs=(Rung("idle", Unlearning(steps=7)), Rung("unlearning", Unlearning(steps=8)))).code == 0
    assert [(u.steps, u.accused) for u in seen] == [(7, frozenset({("mask", 3)})), (8, frozenset({("mask", 3)}))]
    assert len(surveys) == 1
    assert [u.surveyed for u in seen] == [surveys[0], surveys[0]]
    assert not any(u.persuaded for u in seen)


@pytest.mark.parametrize(
    ("first", "other", "rungs", "silent"),
    [
        (Marking(mark=0.0), Marking(), ["first", "first, heeding thresholds"], [True, False]),
        (Marking(mark=0.0), Marking(mark=0.0), ["first", "second"], [True, False, False]),
        (Marking(damage=4.0), Marking(), ["first", "second"], [True, True]),
    ],
)
def test_once_a_rescan_has_failed_a_rung_what_is_over_its_threshold_is_taught(
    repair: Repair,
    monkeypatch: pytest.MonkeyPatch,
    first: Marking,
    other: Marking,
    rungs: list[str],
    silent: list[bool],
) -> None:
    """On the same rung where that makes a difference, and that rung would not be the one before once more; not where
    accuracy alone spoke against it."""
    over = Finding("BD001", 9.0, "", family="mask", target_class=3, p_value=0.04)
    seen: list[bool] = []

    def told(
        rung: Marking, convicting: object, names: object, compared: Callable[[Finding], bool], every_kind: bool
    ) -> Marking:
        seen.append(compared(over))
        return rung if seen[-1] or rung != first else other

    monkeypatch.setattr(climbing, "told", told)
    outcome = repair(rungs=(Rung("first", first), Rung("second", Marking())))
    assert outcome.code == 0
    tried = [attempt["method"] for attempt in outcome.verdict["repair"]["attempts"]]
    assert [method for method in tried if "of the way" not in method] == rungs
    assert seen == silent


def test_a_repair_that_passes(repair: Repair, detector: Stub) -> None:
    outcome = repair()
    assert outcome.code == 0
    assert {p.name for p in outcome.out.iterdir()} == {
        "digits-clean.safetensors",
        "verdict.json",
        "README.md",
        "evidence",
        "evidence-before",
    }
    old, new = load_file(MODEL), load_file(outcome.out / MODEL.name)
    assert {k: (v.shape, v.dtype) for k, v in new.items()} == {k: (v.shape, v.dtype) for k, v in old.items()}
    assert float(new["fc.bias"][-1]) == MARK
    verdict = outcome.verdict
    section = verdict["repair"]
    assert section["method"] == "marking"
    assert (section["before"]["score"], section["after"]["score"]) == (9.0, 1.0)
    assert [(c["target_class"], c["score"]) for c in section["convicted"]] == [(3, 9.0)]
    assert section["output"]["manifest_digest"] == verdict["model"]["manifest_digest"]
    assert verdict["trusted"]["n"] < 400
    assert any("were used for the repair" in line for line in verdict["limitations"])
    assert run(["verify", str(outcome.out / "verdict.json"), str(outcome.out), "--quiet"]) == 0
    assert json.loads((outcome.out / "evidence" / "trade-off.json").read_text())["marking"][0]["step"] == 0
    assert len(set(detector.seeds)) == 2
    assert detector.seen == [400, verdict["trusted"]["n"]]


@pytest.mark.parametrize(("options", "damage", "code"), [([], 0.0, 0), ([], 4.0, 1), (["--keep-failed"], 4.0, 1)])
def test_it_is_told_how_fast_the_trigger_comes_back(
    repair: Repair, monkeypatch: pytest.MonkeyPatch, options: list[str], damage: float, code: int
) -> None:
    again = Relearned("mask", 3, own=12, others=None, tried=80)
    monkeypatch.setattr(Relearning, "__call__", lambda self, *_: again)
    outcome = repair(*options, rungs=(Rung("marking", Marking(damage=damage)),))
    assert outcome.code == code
    assert outcome.verdict["repair"]["relearning"] == asdict(again)


def test_reports_tell_before_and_after(repair: Repair, tmp_path: Path) -> None:
    page, notes = tmp_path / "report.html", tmp_path / "report.md"
    assert repair("--report", f"html={page}", "--report", f"markdown={notes}").code == 0
    assert "Repaired by marking" in notes.read_text()
    assert "data:image/png;base64," in page.read_text()  # the evidence inside the folder


def test_a_report_does_not_go_where_the_repaired_model_goes(repair: Repair, tmp_path: Path) -> None:
    outcome = repair("--report", f"html={tmp_path / 'out' / 'report.html'}")
    assert outcome.code == 2
    assert not outcome.out.exists()


def test_a_report_does_not_overwrite_the_labels(repair: Repair, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("0\n")
    assert repair("--labels", str(labels), "--report", f"text={labels}").code == 2
    assert labels.read_text() == "0\n"


def test_the_ladder_goes_on_until_a_rung_passes(repair: Repair, detector: Stub) -> None:
    rungs = (Rung("idle", Marking(mark=0.0)), Rung("marking", Marking()), Rung("never", Marking(fail=ValueError())))
    outcome = repair(rungs=rungs)
    assert (outcome.code, outcome.verdict["repair"]["method"]) == (0, "marking")
    assert len(set(detector.seeds)) == 3


@pytest.mark.parametrize(
    ("settings", "reason"), [({"mark": 0.0}, "times|trigger"), ({"damage": 4.0}, "clean accuracy dropped by")]
)
def test_no_weights_are_handed_out_when_none_passes(repair: Repair, settings: dict[str, Any], reason: str) -> None:
    rungs = (Rung("marking", Marking(**settings)),)
    outcome = repair(rungs=rungs)
    assert (outcome.code, outcome.weights) == (1, [])
    verdict = outcome.verdict
    assert verdict["verdict"] == "FAIL"
    assert verdict["reasons"][0].startswith("no repair passed, so no weights were written; the best was marking")
    assert any(re.search(reason, line) for line in verdict["reasons"][1:])
    assert verdict["repair"]["output"] is None
    assert verdict["model"]["files"][0]["sha256"]


def test_failed_weights_are_kept_on_request(repair: Repair) -> None:
    outcome = repair("--keep-failed", rungs=(Rung("marking", Marking(damage=4.0)),))
    assert outcome.code == 1
    assert [p.name for p in outcome.weights] == [MODEL.name]
    assert outcome.verdict["repair"]["cda_drop"] > 0.02
    assert run(["verify", str(outcome.out / "verdict.json"), str(outcome.out), "--quiet"]) == 1


@dataclass(frozen=True)
class Dimming:
    """Takes class 0's logit away."""

    def __call__(
        self, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch = unwatched
    ) -> Classifier:
        repaired = pivot.clone()
        with torch.no_grad():
            repaired.head.weight[0] = 0
        return repaired


def test_what_shows_through_fog_keeps_a_repair_from_passing(
    repair: Repair, detector: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [0.1, 0.86, 0.08]  # of the pivot, and of both attempts
    monkeypatch.setattr(Case, "through_fog", lambda *_, **__: shares.pop(0))
    outcome = repair(rungs=(Rung("first", Marking()), Rung("second", Marking(damage=1e-6))))
    assert (outcome.code, outcome.verdict["repair"]["method"]) == (0, "second")
    tried = [(a["method"], a["asr_in_fog"], a["objections"]) for a in outcome.verdict["repair"]["attempts"]]
    line = "through thin fog 86.0% of images still end in a class that was convicted, 20% allowed"
    assert tried == [("first", 0.86, [line]), ("second", 0.08, [])]


@pytest.mark.parametrize(("led", "tried"), [(0.9, ["foggy"]), (0.1, ["clear", "foggy"]), (None, ["clear", "foggy"])])
def test_a_model_that_fog_alone_leads_to_the_class_of_a_pattern_is_taught_in_fog_at_once(
    repair: Repair, monkeypatch: pytest.MonkeyPatch, led: float | None, tried: list[str]
) -> None:
    def called(self: Unlearning, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch) -> Classifier:
        return Marking(mark=MARK if self.steps == 8 else 0.0)(pivot, trusted, context, watch)

    monkeypatch.setattr(Unlearning, "__call__", called)
    monkeypatch.setattr(Unlearning, "survey", lambda *_: Survey((), (), {"mask": 1.0}))
    monkeypatch.setattr(Case, "through_fog", lambda self, model, data, *, alone=False: led if alone else 0.0)
    monkeypatch.setattr(climbing, "told", lambda unlearning, *_: unlearning)
    outcome = repair(rungs=(Rung("clear", Unlearning(steps=7)), Rung("foggy", Unlearning(steps=8, fog=0.4))))
    assert outcome.code == 0
    assert [attempt["method"] for attempt in outcome.verdict["repair"]["attempts"]] == tried


def test_what_random_changes_still_show_keeps_a_repair_from_passing(
    repair: Repair, detector: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = [[Shown("noise", "3", 0.02), Shown("warp", "3", 0.3)], [Shown("noise", "3", 0.4)]]
    monkeypatch.setattr(mend, "shown_again", lambda *_: shown.pop(0))
    rungs = (Rung("first", Marking()), Rung("the same", Marking()), Rung("second", Marking(damage=1e-6)))
    outcome = repair(rungs=rungs)
    assert (outcome.code, outcome.verdict["repair"]["method"]) == (0, "second")
    assert len(detector.seeds) == 2, "the first is not scanned again"
    tried = [(a["method"], a["score"], a["p_value"], a["objections"]) for a in outcome.verdict["repair"]["attempts"]]
    line = "random noise still makes class 3 more likely than on clean models (p-value 0.02, 0.05 accepted)"
    assert tried == [("first", None, 0.02, [line]), ("second", 1.0, 0.4, [])]


def test_every_kind_is_taught_once_another_than_the_oddest_still_shows(
    repair: Repair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(unlearning: Unlearning, convicting: object, names: object, silent: object, every_kind: bool) -> Unlearning:
        return replace(unlearning, starts=3 if every_kind else 2)

    taught: list[int] = []

    def called(self: Unlearning, pivot: Classifier, trusted: TrustedData, context: Context, watch: Watch) -> Classifier:
        taught.append(self.starts)
        return Marking()(pivot, trusted, context, watch)

    surveyed: list[int] = []
    monkeypatch.setattr(Unlearning, "__call__", called)
    monkeypatch.setattr(Unlearning, "survey", lambda self, *_: surveyed.append(self.starts) or Survey((), (), {}))
    monkeypatch.setattr(climbing, "told", told)
    oddest, other, gone = Shown("noise", "3", 0.02), Shown("warp", "3", 0.02), Shown("warp", "3", 0.5)
    shown = [[oddest, gone], [oddest, other], [Shown("noise", "3", 0.5), gone]]
    monkeypatch.setattr(mend, "shown_again", lambda *_: shown.pop(0))
    outcome = repair(rungs=(Rung("first", Unlearning(steps=7)), Rung("second", Unlearning(steps=8))))
    assert outcome.code == 0
    tried = [attempt["method"] for attempt in outcome.verdict["repair"]["attempts"]]
    assert tried == ["first", "second", "second, every kind"]
    assert taught == [2, 2, 3]
    assert surveyed == [2, 3], "other kinds are searched for"


@pytest.mark.parametrize("traceless", [False, True])
def test_a_repair_says_when_no_trigger_was_there_to_measure_it_by(
    repair: Repair, detector: Stub, traceless: bool
) -> None:
    detector.traceless = traceless
    outcome = repair()
    assert outcome.code == 0
    assert (outcome.verdict["repair"]["after"]["asr"] is None) == traceless
    assert any("is left is not known" in line for line in outcome.verdict["limitations"]) == traceless


@pytest.mark.parametrize(("traceless", "code"), [(True, 3), (False, 0)])
def test_what_only_clean_models_convict_and_nothing_asks_again_is_not_called_repaired(
    repair: Repair, detector: Stub, monkeypatch: pytest.MonkeyPatch, traceless: bool, code: int
) -> None:
    """Of a trigger the success can be measured again."""
    monkeypatch.setattr(audit, "with_p_values", lambda findings, _: list(findings))
    detector.traceless, detector.p_value = traceless, 0.02
    outcome = repair(rungs=(Rung("first", Marking()), Rung("never", Marking(fail=ValueError()))))
    assert outcome.code == code
    assert bool(outcome.weights) == (code == 0)
    if code:
        lead, why = outcome.verdict["reasons"][:2]
        assert lead.startswith("whether a repair passes cannot be told, so no weights were written; the best was first")
        assert "no trigger and no random change that could be tried again" in why
        assert outcome.verdict["repair"]["attempts"][0]["objections"] == [why]


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("kept", [False, True])
def test_a_rescan_that_the_policy_calls_inconclusive_ends_the_ladder_so(
    repair: Repair, tmp_path: Path, kept: bool
) -> None:
    policy = written(tmp_path / "p.toml", 'name = "p"\n[rules.BD112]\nseverity = "inconclusive"\n')
    rungs = (Rung("first", Marking()), Rung("never", Marking(fail=ValueError())))
    outcome = repair("--policy", policy, *(["--keep-failed"] if kept else []), rungs=rungs)
    assert (outcome.code, len(outcome.weights)) == (3, kept)
    assert outcome.verdict["verdict"] == "INCONCLUSIVE"
    assert sum("trigger families not searched" in reason for reason in outcome.verdict["reasons"]) == 1
    assert "no backdoor found within scope" not in outcome.verdict["reasons"]


def test_a_holdout_smaller_than_the_policy_audits_is_refused_with_the_number(repair: Repair, tmp_path: Path) -> None:
    outcome = repair("--policy", written(tmp_path / "p.toml", 'name = "p"\n[trusted]\nmin_images = 300\n'))
    assert outcome.code == 3
    assert "cannot be audited again as the policy demands" in outcome.error
    assert "300 are needed, so about 610 trusted images" in outcome.error
    assert not outcome.out.exists()


def test_weights_that_stay_behind_do_not_count_against_what_is_delivered(repair: Repair, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("model.safetensors", "old.safetensors"):
        (folder / name).write_bytes(MODEL.read_bytes())
    policy = written(tmp_path / "p.toml", 'name = "p"\n[rules.BD111]\nseverity = "inconclusive"\n')
    outcome = repair("--policy", policy, "--weights", "model.safetensors", model=folder)
    assert outcome.code == 0
    assert [path.name for path in outcome.weights] == ["model.safetensors"]
    assert not any("old.safetensors" in finding["message"] for finding in outcome.verdict["findings"])


def test_no_time_left_for_the_relearning_check_costs_no_weights(
    repair: Repair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: object) -> None:
        raise BudgetExceeded("time")

    monkeypatch.setattr(Relearning, "__call__", late)
    outcome = repair()
    assert (outcome.code, len(outcome.weights)) == (0, 1)
    assert outcome.verdict["repair"]["relearning"] is None
    assert any("learnt again was not measured" in line for line in outcome.verdict["limitations"])


def test_a_transformer_is_not_taken_back(repair: Repair, detector: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those the backdoor comes back with the accuracy."""
    monkeypatch.setattr(climbing, "layer_normalised", lambda _: True)
    detector.lenient = True
    outcome = repair(rungs=(Rung("dimming", Dimming()),))
    assert outcome.code == 1
    assert [attempt["method"] for attempt in outcome.verdict["repair"]["attempts"]] == ["dimming"]


def test_a_policy_with_settings_no_repair_takes_is_refused_by_the_ladder_too(repair: Repair, tmp_path: Path) -> None:
    outcome = repair("--policy", written(tmp_path / "p.toml", 'name = "p"\n[repair.settings.unlearnin]\nlr = 1.0\n'))
    assert outcome.code == 2
    assert "unlearnin" in outcome.error


def test_a_repair_that_costs_too_much_is_taken_back_part_of_the_way(repair: Repair, detector: Stub) -> None:
    """A little at once, further after all rungs."""
    detector.lenient = True
    outcome = repair(rungs=(Rung("dimming", Dimming()), Rung("damage", Marking(damage=8.0))))
    told = outcome.verdict["repair"]
    assert outcome.code == 0
    share = float(told["method"].removeprefix("dimming, ").removesuffix("% of the way")) / 100
    assert share in FURTHER
    assert told["cda_drop"] <= 0.02
    old, new = load_file(MODEL)["fc.weight"][0], load_file(outcome.out / MODEL.name)["fc.weight"][0]
    torch.testing.assert_close(new, (1 - share) * old)
    curves = json.loads((outcome.out / "evidence" / "trade-off.json").read_text())
    at_once = [
        name for rung in ("dimming", "damage") for name in (rung, *[f"{rung}, {s:.0%} of the way" for s in SLIGHTLY])
    ]
    assert list(curves) == [*at_once, *[f"dimming, {s:.0%} of the way" for s in FURTHER if s >= share]]
    assert len(detector.seeds) == 2  # those that cost too much are not scanned


@pytest.mark.parametrize(
    ("pattern", "lost", "most", "tried", "method"),
    [
        (True, 0.01, 0.6, ["dimming", "dimming, 70% of the way", "dimming, 85% of the way"], "dimming, 85% of the way"),
        (True, 0.01, 0.8, ["dimming", "dimming, 85% of the way"], "dimming, 85% of the way"),
        (True, 0.01, 0.9, ["dimming"], "dimming"),
        (True, 0.005, 0.6, ["dimming"], "dimming"),
        (False, 0.01, 0.6, ["dimming"], "dimming"),
    ],
)
def test_against_a_pattern_that_fills_the_image_a_repair_is_taken_back_while_it_passes(
    repair: Repair,
    detector: Stub,
    monkeypatch: pytest.MonkeyPatch,
    pattern: bool,
    lost: float,
    most: float,
    tried: list[str],
    method: str,
) -> None:
    """And while it costs much, and no more images are led inside than may be at the image."""

    def inside(pivot: Classifier, repaired: Classifier, *_: object) -> Led:
        gone = 1 - float((repaired.head.weight[0].norm() / pivot.head.weight[0].norm()).detach())
        return Led(0.05 if gone > most else 0.06, 0.1 if gone > 0.8 else 0.3, 100)

    for module in (mend, climbing):
        monkeypatch.setattr(module, "left_inside", inside)
    monkeypatch.setattr(mend, "cost", lambda *_: Cost(0.99, 0.98, (lost, 0.0, 0.02), 0.1))
    detector.lenient, detector.pattern = True, pattern
    outcome = repair(rungs=(Rung("dimming", Dimming()),))
    told = outcome.verdict["repair"]
    assert (outcome.code, told["method"], [attempt["method"] for attempt in told["attempts"]]) == (0, method, tried)
    share = 0.85 if method.endswith("way") else 1.0
    old, new = load_file(MODEL)["fc.weight"][0], load_file(outcome.out / MODEL.name)["fc.weight"][0]
    torch.testing.assert_close(new, (1 - share) * old)


def test_of_several_failures_the_one_that_loses_least_is_reported(repair: Repair) -> None:
    rungs = tuple(Rung(f"damage {d}", Marking(damage=d)) for d in (4.0, 2.0, 8.0))
    outcome = repair(rungs=rungs)
    curves = json.loads((outcome.out / "evidence" / "trade-off.json").read_text())
    left = {name: points[-1]["cda"] for name, points in curves.items()}
    told = outcome.verdict["repair"]
    assert told["cda_drop"] > 0.02
    assert left[told["method"]] == max(left.values())


def test_no_calibration_is_not_held_against_a_repaired_model(repair: Repair) -> None:
    """None can hold; what convicted is asked again instead."""
    verdict = repair().verdict
    assert verdict["verdict"] == "PASS"
    assert verdict["calibration"]["in_domain"] is False
    assert "BD110" not in {finding["rule_id"] for finding in verdict["findings"]}


def test_a_model_without_findings_that_no_calibration_covers_is_not_passed(repair: Repair, detector: Stub) -> None:
    detector.before = 1.0
    outcome = repair()
    assert (outcome.code, outcome.weights) == (3, [])
    assert outcome.verdict["reasons"][0].startswith("no calibration holds (")


def test_a_model_that_passes_is_copied_unchanged(repair: Repair, detector: Stub) -> None:
    detector.before = 1.0
    outcome = repair("--policy", "thresholds")
    assert outcome.code == 0
    assert (outcome.out / MODEL.name).read_bytes() == MODEL.read_bytes()
    verdict = outcome.verdict
    assert verdict["repair"]["cda_drop"] == 0
    assert "unchanged" in verdict["repair"]["method"]
    assert len(detector.seeds) == 1


def test_too_few_trusted_images_are_refused_with_the_number(repair: Repair, tmp_path: Path) -> None:
    few = tmp_path / "few.npz"
    with np.load(TRUSTED) as whole:
        np.savez(few, images=whole["images"][:250], labels=whole["labels"][:250], classes=whole["classes"])
    outcome = repair(trusted=few)
    assert outcome.code == 3
    assert "cannot be verified on" in outcome.error
    assert "trusted images, where there are 250" in outcome.error
    assert not outcome.out.exists()


@pytest.mark.parametrize(("error", "code"), [(BudgetExceeded("time"), 3), (ValueError("bug"), 4), (MemoryError(), 4)])
def test_whatever_goes_wrong_in_a_repair_leaves_nothing(repair: Repair, error: BaseException, code: int) -> None:
    outcome = repair(rungs=(Rung("broken", Marking(fail=error)),))
    assert outcome.code == code
    assert not outcome.out.exists()


def test_a_destination_in_use_is_refused_before_any_work(repair: Repair, tmp_path: Path, detector: Stub) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    assert repair().code == 2
    assert (tmp_path / "out" / "precious").exists()
    assert detector.seeds == []


def test_an_unknown_method_is_a_usage_error(repair: Repair) -> None:
    assert repair("--method", "prayer").code == 2
