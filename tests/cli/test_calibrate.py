"""`audit-cli calibrate`: clean models in, a file out that later scans find and use."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from audit_cli import audit
from audit_cli.audit import Subject
from audit_cli.calibration import fingerprints, named, read, scores_of
from audit_cli.checkpoint import open_checkpoint
from audit_cli.classifier import Classifier
from audit_cli.cli import run
from audit_cli.conformal import families_of
from audit_cli.data import Preprocessing, read_images
from audit_cli.detectors.calibrated import Calibrated
from audit_cli.inversion import FAMILIES
from audit_cli.inversion.additive import Additive
from audit_cli.inversion.engine import Search
from audit_cli.models import build
from audit_cli.policy import Policy
from audit_cli.resources import bundled
from audit_cli.types import Context, Finding, TrustedData

FIXTURES = bundled("fixtures")
TRUSTED = FIXTURES / "digits-trusted.npz"
CLEAN = [FIXTURES / f"digits-clean{suffix}.safetensors" for suffix in ("", "-2")]
PLAIN = ("--mean", "0,0,0", "--std", "1,1,1", "--quiet")


@dataclass(frozen=True)
class Quick:
    """A detector that scores class c with 1 + c / 10, and where the model is odd, class 3 with 9."""

    reference: object = None
    odd: bool = False

    @property
    def scoring(self) -> dict[str, str]:
        return {"additive": "quick"}

    @property
    def compared(self) -> Quick:
        return self

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        for c, name in enumerate(trusted.class_names):
            score = 9.0 if self.odd and c == 3 else 1 + c / 10
            yield Finding("BD001", score, "", "quick", "additive", c, name)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit_cli.detectors.calibrated.Calibrated", Quick)


def calibrate(out: Path, *models: Path) -> int:
    return run(["calibrate", *map(str, models), "--trusted", str(TRUSTED), "--out", str(out), *PLAIN])


def subject(path: Path) -> Subject:
    raw, stated = read_images(TRUSTED), Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), source="the test")
    with open_checkpoint(path) as checkpoint:
        return audit.feed(build(checkpoint), raw, checkpoint, stated, Context())


@pytest.mark.usefixtures("quick")
class TestCalibrate:
    def test_models_are_added_once(self, tmp_path: Path) -> None:
        out = tmp_path / "digits.json"
        assert calibrate(out, CLEAN[0]) == 0
        assert calibrate(out, *CLEAN) == 0
        found = read(out)
        assert len(found.models) == 2
        assert found.rows == ("additive",)
        assert found.models[0].scores["additive"] == pytest.approx(tuple(1 + c / 10 for c in range(10)))
        assert 0.9 < found.models[0].accuracy <= 1

    def test_other_images_are_another_calibration(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "digits.json"
        assert calibrate(out, CLEAN[0]) == 0
        out.write_text(out.read_text().replace(read(out).trusted, "0" * 64))
        assert calibrate(out, CLEAN[1]) == 2
        assert "other trusted images" in capsys.readouterr().err
        assert (read(out).trusted, len(read(out).models)) == ("0" * 64, 1)

    def test_a_model_that_fails_the_gate_is_not_scored(self, tmp_path: Path) -> None:
        out = tmp_path / "digits.json"
        plain = [part.replace("0,0,0", "9,9,9") for part in PLAIN]
        arguments = ["calibrate", str(CLEAN[0]), "--trusted", str(TRUSTED), "--out", str(out), *plain]
        assert run(arguments) == 3
        assert not out.exists()

    def test_labels_and_prompts_of_a_clip_model(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """As scan has them: the trusted images' class names are the labels unless a file gives others."""
        out, labels = tmp_path / "clip.json", tmp_path / "labels.txt"
        words = ["calibrate", str(FIXTURES / "clip-clean"), "--trusted", str(TRUSTED), "--out", str(out), "--quiet"]
        assert run(words) == 0
        (known,) = read(out).models
        assert (known.arch, read(out).domain.classes) == ("clip-vit-3x48-patch8-32", tuple("0123456789"))
        assert known.accuracy > 0.9
        out.unlink()
        labels.write_text("\n".join(reversed("0123456789")))
        assert run([*words, "--labels", str(labels), "--prompt", "the number {}"]) == 0
        assert read(out).models[0].accuracy > 0.9
        out.unlink()
        labels.write_text("\n".join(f"no {digit}" for digit in range(10)))
        assert run([*words, "--labels", str(labels)]) == 2
        assert "are not among the model's labels" in capsys.readouterr().err

    def test_of_several_weights_files_one_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder, out = shutil.copytree(FIXTURES / "vit-clean", tmp_path / "vit"), tmp_path / "vit.json"
        shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        words = ["calibrate", str(folder), "--trusted", str(TRUSTED), "--out", str(out), "--quiet"]
        assert run(words) == 2
        assert "--weights" in capsys.readouterr().err
        assert run([*words, "--weights", "one.safetensors"]) == 0
        assert len(read(out).models) == 1

    def test_a_scan_uses_it_for_models_as_accurate(self, tmp_path: Path) -> None:
        out = tmp_path / "digits.json"
        assert calibrate(out, *CLEAN) == 0
        default = Policy.load("default")
        loose = {**default.rules, "BD001": replace(default.rules["BD001"], alpha=0.4)}  # two models allow no less
        policy, suspect = replace(default, rules=loose, calibrations=(out,)), subject(CLEAN[0])
        known = audit.calibrated(suspect, policy, [Quick()], Context())
        assert known.calibration == read(out)
        like_it = out.read_text()
        out.write_text(
            out.read_text().replace('"accuracy": 0.9', '"accuracy": 0.1').replace('"accuracy": 1.0', '"accuracy": 0.1')
        )
        assert audit.calibrated(suspect, policy, [Quick()], Context()).calibration is None
        other = tmp_path / "other.json"
        other.write_text(like_it)
        both = replace(policy, calibrations=(out, other))
        assert audit.calibrated(suspect, both, [Quick()], Context()).calibration == read(other)

    def test_of_several_the_nearest_in_accuracy_decides(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        near, far = tmp_path / "near.json", tmp_path / "far.json"
        assert calibrate(near, *CLEAN) == 0
        models = tuple(replace(model, accuracy=0.955) for model in read(near).models)
        far.write_text(json.dumps(replace(read(near), models=models).document()))
        default = Policy.load("default")
        loose = {**default.rules, "BD001": replace(default.rules["BD001"], alpha=0.4)}

        def chosen(own: tuple[Path, ...], shipped: list[Path]) -> object:
            monkeypatch.setattr(audit, "bundled_calibrations", lambda: shipped)
            policy = replace(default, rules=loose, calibrations=own)
            return audit.calibrated(subject(CLEAN[0]), policy, [Quick()], Context()).calibration

        assert chosen((far, near), []) == chosen((near, far), []) == chosen((), [far, near]) == read(near)
        assert chosen((far,), [near]) == read(far)


def test_quick_scores_what_needs_no_search_as_a_scan_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "digits.json"
    arguments = [str(CLEAN[0]), "--trusted", str(TRUSTED), "--out", str(out), *PLAIN, "--dtype", "float32"]
    assert run(["calibrate", *arguments, "--quick"]) == 0
    found, detector = read(out), Calibrated()
    assert dict(found.scoring) == {f: m for f, m in fingerprints(detector).items() if f not in FAMILIES}
    here = subject(CLEAN[0])
    searched = replace(detector, families=(Additive(),), race=replace(detector.race, steps=1), search=Search(images=1))
    scanned = scores_of(searched(here.classifier, here.trusted, Context()))
    names = here.trusted.class_names
    for row, scores in found.models[0].scores.items():
        assert scores == tuple(scanned.get((row, named(name))) for name in names), row
    assert set(families_of(found.rows)) == set(found.scoring)
    of_searches = json.loads(out.read_text())
    of_searches["scoring"]["additive"] = "0" * 16
    out.write_text(json.dumps(of_searches))
    assert run(["calibrate", str(CLEAN[1]), *arguments[1:], "--quick"]) == 2
    assert "with or without --quick" in capsys.readouterr().err
    monkeypatch.setattr("audit_cli.inversion.racing.Race.whole", lambda race, classes: False)
    assert run(["calibrate", str(CLEAN[1]), *arguments[1:], "--quick"]) == 2
    assert "--quick: which of 10 classes are scored depends on the search" in capsys.readouterr().err
