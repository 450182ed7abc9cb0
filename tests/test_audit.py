"""The order of an audit: what is asked first, what survives a failure, what the verdict says it did."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from toys import Planted, identity

from audit_cli import audit, load, models
from audit_cli.audit import Subject, feed, measure, scan
from audit_cli.checkpoint import open_checkpoint
from audit_cli.classifier import Classifier
from audit_cli.data import Preprocessing, read_images
from audit_cli.detectors.calibrated import Calibrated
from audit_cli.errors import AuditError, BudgetExceeded, DataError, PolicyError, UnsupportedError, UsageError
from audit_cli.inversion.mask import Mask
from audit_cli.inversion.racing import Race
from audit_cli.policy import Policy
from audit_cli.resources import bundled, violations
from audit_cli.types import Context, Detector, Finding, TrustedData

CLEAN, TRUSTED = bundled("fixtures") / "digits-clean.safetensors", bundled("fixtures") / "digits-trusted.npz"
POLICY = Policy.load("default")
STATED = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), source="the test")


@dataclass(frozen=True)
class Says:
    """Yields its findings and then fails, when told to."""

    findings: tuple[Finding, ...] = ()
    fail: BaseException | None = None

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        yield from self.findings
        if self.fail is not None:
            raise self.fail


PROCESSOR = {"image_processor_type": "ViTImageProcessor", "do_resize": False, "image_std": [0.5] * 3}
GUILTY = Finding("BD001", 9.0, "a small trigger", "a", "mask", 3, "three")
ORDINARY = Finding("BD001", 1.0, "an ordinary trigger", "a", "mask", 3, "three")


def subject(planted: Planted | None = None) -> Subject:
    planted = planted or Planted()
    data = planted.data(per_class=30)
    return Subject(planted.classifier(), data, Preprocessing(source="the test"), None)


def rules(findings: Sequence[Finding]) -> list[str]:
    return [f.rule_id for f in findings]


class TestFeed:
    def fed(self, folder: Path, stated: Preprocessing | None = None, auto: bool = False) -> Preprocessing:
        """How the clean network, in `folder` with its configs, gets the trusted images."""
        (folder / "model.safetensors").write_bytes(CLEAN.read_bytes())
        with open_checkpoint(folder) as checkpoint:
            raw = read_images(TRUSTED)
            return feed(models.build(checkpoint), raw, checkpoint, stated, Context(), auto).preprocessing

    def test_the_processor_of_the_whole_model_is_believed(self, tmp_path: Path) -> None:
        for name, mean in (("preprocessor_config.json", 0.1), ("processor_config.json", 0.2)):
            config = PROCESSOR | {"image_mean": [mean] * 3}
            whole = {"image_processor": config} if name == "processor_config.json" else config
            (tmp_path / name).write_text(json.dumps(whole))
            fed = self.fed(tmp_path)
            assert (fed.mean, fed.source) == ((mean,) * 3, name)

    def test_an_empty_section_is_not_passed_over(self, tmp_path: Path) -> None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        (tmp_path / "processor_config.json").write_text('{"image_processor": {}}')
        with pytest.raises(UsageError, match=r"^processor_config\.json: image_processor_type None"):
            self.fed(tmp_path)

    @pytest.mark.parametrize("config", [{"image_processor_type": "OddImageProcessor"}, PROCESSOR | {"do_pad": True}])
    def test_a_config_that_is_not_taken_can_be_replaced(self, config: dict[str, object], tmp_path: Path) -> None:
        """Size and normalisation, stated or tried out, are all that it could have said; each alone is not enough."""
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
        size = Preprocessing.for_size((32, 32), "the test")
        whole = replace(size, mean=STATED.mean, std=STATED.std)
        assert self.fed(tmp_path, whole) == whole
        tried = self.fed(tmp_path, size, auto=True)
        assert (tried.size, tried.source[:5]) == ((32, 32), "auto:")
        for stated, auto in ((None, False), (size, False), (STATED, False), (None, True)):
            with pytest.raises(UsageError, match="pass --size, --mean and --std"):
                self.fed(tmp_path, stated, auto)


class TestMeasure:
    def test_the_gate_comes_first(self) -> None:
        findings = measure(subject(), POLICY, [Says((ORDINARY,))], Context())
        assert rules(findings)[:7] == ["BD101", "BD102", "BD103", "BD104", "BD105", "BD106", "BD001"]

    def test_nothing_is_searched_when_the_gate_is_shut(self) -> None:
        few = subject()
        shut = replace(few, trusted=few.trusted.take(torch.arange(20)))
        findings = measure(shut, POLICY, [Says((GUILTY,), RuntimeError("must not run"))], Context())
        assert "BD001" not in rules(findings)
        assert next(f for f in findings if f.rule_id == "BD106").score >= 1

    def test_a_failing_detector_loses_its_own_findings_only(self) -> None:
        detectors: list[Detector] = [
            Says((GUILTY,)),
            Says((ORDINARY, ORDINARY), ZeroDivisionError("boom")),
            Says((ORDINARY,)),
        ]
        findings = measure(subject(), POLICY, detectors, Context())
        assert rules(findings)[6:9] == ["BD001", "BD109", "BD001"]
        failure = findings[7]
        assert failure.score >= POLICY.rules["BD109"].threshold
        assert "Says failed: ZeroDivisionError: boom" in failure.message

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_failing_detector_is_forgiven_only_beside_a_conviction(self, order: int) -> None:
        broken = Says((), ZeroDivisionError("boom"))
        assert "BD001" in rules(measure(subject(), POLICY, [broken, Says((GUILTY,))][::order], Context()))
        with pytest.raises(ZeroDivisionError):
            measure(subject(), POLICY, [broken, Says((ORDINARY,))][::order], Context())

    def test_what_a_detector_found_before_it_failed_convicts_nobody(self) -> None:
        with pytest.raises(ZeroDivisionError):
            measure(subject(), POLICY, [Says((GUILTY,), ZeroDivisionError("boom"))], Context())

    def test_a_used_up_budget_ends_the_audit_and_keeps_the_findings(self) -> None:
        detectors: list[Detector] = [Says((ORDINARY,)), Says((ORDINARY,), BudgetExceeded("enough")), Says((GUILTY,))]
        findings = measure(subject(), POLICY, detectors, Context())
        assert rules(findings)[6:9] == ["BD001", "BD001", "BD108"]
        assert GUILTY not in findings
        assert findings[8].message == "enough"

    def test_a_budget_used_up_in_the_gate_is_no_crash(self) -> None:
        class Used:
            def check(self) -> None:
                raise BudgetExceeded("enough")

        findings = measure(subject(), POLICY, [Says((GUILTY,))], Context(budget=Used()))
        assert "BD108" in rules(findings)
        assert GUILTY not in findings

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(0), GeneratorExit()])
    def test_an_interruption_is_not_a_failed_detector(self, error: BaseException) -> None:
        with pytest.raises(type(error)):
            measure(subject(), POLICY, [Says((GUILTY,)), Says((), error)], Context())

    def test_nothing_searched_is_no_pass(self) -> None:
        findings = measure(subject(), POLICY, [Says()], Context())
        assert audit.judge(findings, POLICY, "m", _today())[0] == "INCONCLUSIVE"

    def test_the_planted_classifier_is_convicted_and_its_twin_is_not(self) -> None:
        detector = Calibrated((Mask(),), race=Race(steps=80), references=(identity,))
        for planted, expected in ((Planted(), "FAIL"), (Planted(weight=0), "PASS")):
            findings = measure(subject(planted), POLICY, [detector], Context())
            verdict, _, reasons, judged = audit.judge(findings, POLICY, "m", _today())
            assert verdict == expected, reasons
            fired = {item.finding.target_class for item in judged if item.fired and item.severity == "fail"}
            assert fired == ({planted.target} if expected == "FAIL" else set())


def _today() -> object:
    import datetime

    return datetime.datetime.now(datetime.UTC).date()


def test_a_stricter_gate_does_not_count_as_a_search() -> None:
    """Where no rule of a detector can convict, a pass of the gate alone is none."""
    rules = {**POLICY.rules, "BD103": replace(POLICY.rules["BD103"], severity="fail")}
    findings = measure(subject(Planted()), replace(POLICY, rules=rules), [], Context())
    assert audit.judge(findings, POLICY, "m", _today())[0] == "INCONCLUSIVE"
    assert any(finding.rule_id == "BD107" and finding.detector == "scope" for finding in findings)


class TestScan:
    def test_a_verdict_says_what_was_done(self) -> None:
        verdict = scan(
            CLEAN,
            TRUSTED,
            detectors=[Says((ORDINARY, replace(ORDINARY, rule_id="BD107", score=0.0, details={"searched": 10})))],
            preprocessing=STATED,
            policy=Policy.load("thresholds"),
        )
        document = verdict.document
        assert violations(document, "verdict") == []
        assert (verdict.verdict, verdict.exit_code) == ("PASS", 0)
        assert document["coverage"] == {"classes": 10, "searched": 10, "trigger_families": ["mask"]}
        assert document["trusted"]["n"] == 400  # type: ignore[index]
        assert document["trusted"]["accuracy"] > 0.95  # type: ignore[index]
        assert document["model"]["preprocessing"] == {
            "size": None,
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
            "source": "the test",
        }  # type: ignore[index]
        assert {"checkpoint", "trusted data", "sanity"} <= set(document["environment"]["stages"])  # type: ignore[index]
        assert any("additive" in item["message"] for item in document["findings"] if item["rule_id"] == "BD112")  # type: ignore[attr-defined]
        assert any("mask" in line for line in document["limitations"])  # type: ignore[attr-defined]

    def test_auto_says_what_it_took(self) -> None:
        verdict = scan(CLEAN, TRUSTED, detectors=[Says((ORDINARY,))])
        preprocessing = verdict.document["model"]["preprocessing"]  # type: ignore[index]
        assert preprocessing["source"].startswith("auto: ")
        assert preprocessing["mean"] is not None

    def test_detectors_see_the_normalised_model_and_the_pixels(self) -> None:
        seen: list[Classifier] = []

        def look(suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
            seen.append(suspect)
            assert float(trusted.images.min()) >= 0
            assert float(trusted.images.max()) <= 1
            yield ORDINARY

        scan(CLEAN, TRUSTED, detectors=[look], preprocessing=replace(STATED, mean=(0.01,) * 3, std=(0.99,) * 3))
        assert seen[0].mean.flatten().tolist() == pytest.approx([0.01] * 3)
        assert seen[0].std.flatten().tolist() == pytest.approx([0.99] * 3)

    def test_no_evidence_without_a_place_for_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        scan(CLEAN, TRUSTED, detectors=[Says((GUILTY,))], preprocessing=STATED)
        assert list(tmp_path.iterdir()) == []

    def test_a_model_that_changes_under_the_audit(self, tmp_path: Path) -> None:
        model = tmp_path / "m.safetensors"
        model.write_bytes(CLEAN.read_bytes())

        def swap(suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
            model.write_bytes((bundled("fixtures") / "digits-badnets.safetensors").read_bytes())
            yield ORDINARY

        with pytest.raises(AuditError, match="changed while it was audited"):
            scan(model, TRUSTED, detectors=[swap], preprocessing=STATED)

    def test_a_policy_in_the_audited_folder_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").write_bytes(CLEAN.read_bytes())
        (tmp_path / "p.toml").write_text('name = "theirs"\n')
        with pytest.raises(PolicyError, match="inside the audited model"):
            scan(tmp_path, TRUSTED, policy=Policy.load(tmp_path / "p.toml"))

    def test_a_class_the_model_does_not_know(self, tmp_path: Path) -> None:
        import numpy as np

        images = np.zeros((120, 16, 16), dtype=np.uint8)
        np.savez(tmp_path / "t.npz", images=images, labels=np.arange(120) % 12)
        with pytest.raises(DataError, match="only 10 outputs"):
            scan(CLEAN, tmp_path / "t.npz", preprocessing=STATED)

    def test_the_random_state_of_the_process_is_left_alone(self) -> None:
        before = torch.random.get_rng_state()
        scan(CLEAN, TRUSTED, detectors=[Says((ORDINARY,))], preprocessing=STATED)
        assert torch.equal(torch.random.get_rng_state(), before)


def test_load_opens_as_scan_does(tmp_path: Path) -> None:
    classifier = load(CLEAN)
    assert (classifier.arch, classifier.num_classes) == ("resnet8-cifar", 10)
    (tmp_path / "m.safetensors").write_bytes(b"\x80\x04no")
    with pytest.raises(AuditError):
        load(tmp_path / "m.safetensors")
    with pytest.raises((UnsupportedError, AuditError)):
        load(CLEAN, arch="torchvision:resnet18")
