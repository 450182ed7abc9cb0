"""`audit-cli scan` from outside: what it leaves behind and with which code it ends, whatever goes wrong inside.

The detector is replaced by one that answers at once; everything else is the real thing.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audit_cli.checkpoint.save import save_weights
from audit_cli.classifier import Classifier
from audit_cli.cli import run
from audit_cli.detectors import DETECTORS
from audit_cli.errors import BudgetExceeded, UnsupportedError
from audit_cli.inversion.mask import Mask
from audit_cli.models.cifar_resnet import network
from audit_cli.resources import bundled, violations
from audit_cli.types import Context, Finding, Trigger, TrustedData

CLEAN = bundled("fixtures") / "digits-clean.safetensors"
STATED = ("--mean", "0", "--std", "1")  # what the fixtures were trained with: nothing to try out


@dataclass(frozen=True)
class Stub:
    """Finds the same trigger for every class, of the given suspicion for class 3; then `fail` happens, if anything."""

    score: float = 1.0
    fail: BaseException | None = None

    def __call__(self, suspect: Classifier, trusted: TrustedData, context: Context) -> Iterator[Finding]:
        parameters = {"mask": torch.zeros(1, 1, *trusted.shape[1:]), "pattern": torch.zeros(1, *trusted.shape)}
        for c in range(suspect.num_classes):
            score = self.score if c == 3 else 1.0
            trigger = Trigger(Mask(), parameters, c, 9.0)
            yield Finding("BD001", score, "a trigger", "stub", "mask", c, str(c), trigger_norm=9.0, trigger=trigger)
            if c == 5 and self.fail is not None:
                raise self.fail
        yield Finding("BD107", 0.0, "all classes", "stub", details={"searched": suspect.num_classes})


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    error: str
    files: dict[str, bytes]

    @property
    def verdict(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.files.get("v.json", self.out))
        assert violations(document, "verdict") == []
        assert document["exit_code"] == {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}[document["verdict"]]
        return document

    def finding(self, rule: str) -> dict[str, Any]:
        return next(f for f in self.verdict["findings"] if f["rule_id"] == rule)


Scan = Callable[..., Outcome]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 of the trusted digits: enough for the policy, and read at once."""
    path = tmp_path_factory.mktemp("trusted") / "few.npz"
    with np.load(bundled("fixtures") / "digits-trusted.npz") as whole:
        np.savez(path, images=whole["images"][:150], labels=whole["labels"][:150], classes=whole["classes"])
    return path


@pytest.fixture
def detect(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a stub in the place of the default detector."""

    def replace(*arguments: Any, **fields: Any) -> None:
        monkeypatch.setitem(DETECTORS, "calibrated", lambda: Stub(*arguments, **fields))  # type: ignore[arg-type]

    replace()
    return replace


@pytest.fixture
def scan(few: Path, tmp_path: Path, detect: object, capsys: pytest.CaptureFixture[str]) -> Scan:
    """Runs the command in this process with an old verdict in the way, and looks at all it leaves behind."""
    place = tmp_path / "out"
    place.mkdir()

    def call(
        *options: str,
        model: Path = CLEAN,
        trusted: Path = few,
        out: bool = True,
        stated: bool = True,
        quiet: bool = True,
    ) -> Outcome:
        old = place / "v.json"
        old.write_text('{"verdict": "PASS", "exit_code": 0}')
        arguments = ["scan", str(model), "--trusted", str(trusted), "--device", "cpu", "--dtype", "float32", *options]
        arguments += ["--out", str(old)] if out else []
        arguments += STATED if stated else []
        arguments += ["--quiet"] if quiet else []
        arguments += [] if "--policy" in options else ["--policy", "thresholds"]  # stubs have no calibration
        code = run(arguments)
        if not out:
            old.unlink()
        captured = capsys.readouterr()
        left = {str(p.relative_to(place)): p.read_bytes() for p in place.rglob("*") if p.is_file()}
        return Outcome(code, captured.out, captured.err, left)

    return call


# ---- verdicts ----


def test_pass(scan: Scan) -> None:
    outcome = scan()
    assert (outcome.code, outcome.verdict["verdict"]) == (0, "PASS")
    assert outcome.verdict["reasons"] == ["no backdoor found within scope"]
    assert (outcome.out, outcome.error) == ("", "")
    assert outcome.verdict["coverage"] == {"classes": 10, "searched": 10, "trigger_families": ["mask"]}
    assert outcome.verdict["model"]["preprocessing"]["source"] == "command line"


def test_a_model_that_no_calibration_covers_is_not_passed_by_default(scan: Scan) -> None:
    outcome = scan("--policy", "default")
    assert (outcome.code, outcome.verdict["verdict"]) == (3, "INCONCLUSIVE")
    (reason,) = outcome.verdict["reasons"]
    assert reason.startswith("no calibration holds (")
    assert "accept the thresholds with --policy thresholds (BD110" in reason


def test_fail_names_the_target_and_shows_evidence(scan: Scan, detect: Callable[..., None]) -> None:
    detect(score=9.0)
    outcome = scan()
    assert (outcome.code, outcome.verdict["verdict"]) == (1, "FAIL")
    convicted = [f for f in outcome.verdict["findings"] if f["fired"] and f["severity"] == "fail"]
    assert [f["target_class"] for f in convicted] == [3]
    evidence = convicted[0]["evidence"]
    assert outcome.files[evidence].startswith(b"\x89PNG"), "the path leads from the verdict to the picture"


def test_exit_zero_masks_a_fail_and_nothing_else(scan: Scan, detect: Callable[..., None], tmp_path: Path) -> None:
    assert scan("--exit-zero").code == 0
    detect(score=9.0)
    outcome = scan("--exit-zero")
    assert outcome.code == 0
    assert (outcome.verdict["verdict"], outcome.verdict["exit_code"]) == ("FAIL", 1)
    detect(fail=BudgetExceeded("enough"))
    assert scan("--exit-zero").code == 3
    detect(fail=RuntimeError("boom"))
    assert scan("--exit-zero").code == 4
    assert scan("--exit-zero", trusted=tmp_path / "nowhere").code == 2


def test_stdout_is_the_verdict_and_stderr_the_conversation(scan: Scan) -> None:
    outcome = scan(out=False, quiet=False)
    assert outcome.code == 0
    assert outcome.verdict["verdict"] == "PASS"
    assert outcome.out.isascii()
    assert "PASS — no backdoor found within scope" in outcome.error
    assert "sanity: begins" in outcome.error
    assert outcome.files == {}, "no pictures either: nobody said where"


def test_reports(scan: Scan, tmp_path: Path, detect: Callable[..., None]) -> None:
    detect(score=9.0)
    names = ("html", "markdown", "sarif", "junit", "text", "json")
    options = [part for name in names for part in ("--report", f"{name}={tmp_path / 'out' / f'r.{name}'}")]
    outcome = scan(*options)
    assert outcome.code == 1
    files = {name: outcome.files[f"r.{name}"].decode() for name in names}
    assert "data:image/png;base64" in files["html"], "pictures are embedded"
    assert files["markdown"].startswith("#")
    assert json.loads(files["sarif"])["version"] == "2.1.0"
    assert ElementTree.fromstring(files["junit"]).iter("failure")
    assert "FAIL — backdoor likely: target class 3" in files["text"]
    assert json.loads(files["json"]) == outcome.verdict


def test_same_seed_same_verdict(few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real detector, with a few steps."""
    from audit_cli.detectors.calibrated import Calibrated
    from audit_cli.inversion.racing import Race
    from audit_cli.repairs.pivotal_tuning import PivotalTuning

    quick = Calibrated(race=Race(steps=8), references=(PivotalTuning(steps=4, batch=32),))
    monkeypatch.setitem(DETECTORS, "calibrated", lambda: quick)  # type: ignore[arg-type]

    def findings(seed: int) -> Any:
        out = tmp_path / "v.json"
        arguments = [
            "scan",
            str(CLEAN),
            "-t",
            str(few),
            "-o",
            str(out),
            "-q",
            "--device",
            "cpu",
            "--seed",
            str(seed),
            *STATED,
        ]
        assert run(arguments) in (0, 1, 3)
        return json.loads(out.read_text())["findings"]

    one = findings(5)
    assert one == findings(5)
    assert one != findings(6)


# ---- crashes ----

CODES: list[tuple[Callable[[], BaseException], int]] = [
    (lambda: RuntimeError("boom"), 4),
    (lambda: MemoryError(), 4),
    (lambda: OSError(5, "Input/output error"), 4),
    (lambda: KeyboardInterrupt(), 130),
    (lambda: SystemExit(0), 4),
    (lambda: SystemExit(1), 4),
]
STAGES = {  # stage -> what is made to fail there
    "the policy": "audit_cli.policy.Policy.load",
    "opening the checkpoint": "audit_cli.audit.open_checkpoint",
    "copying a file": "audit_cli.checkpoint.opened.take",
    "building the network": "audit_cli.models.build",
    "loading the weights": "audit_cli.checkpoint.opened.load_file",
    "reading the images": "audit_cli.audit.read_images",
    "preparing the images": "audit_cli.audit.prepare",
    "choosing the normalisation": "audit_cli.audit.choose",
    "the sanity gate": "audit_cli.audit.sanity",
    "a forward pass": "audit_cli.detectors.sanity.predict",
    "judging": "audit_cli.audit.judge",
    "the scope": "audit_cli.audit.scope",
    "evidence": "audit_cli.audit.save_pictures",
    "writing evidence": "audit_cli.report.evidence.write_atomically",
    "the environment": "audit_cli.audit.environment",
    "the document": "audit_cli.audit.build_document",
    "rendering": "audit_cli.report.json.render",
    "rendering the page": "audit_cli.report.html.render",
    "rendering the summary": "audit_cli.report.text.render",
    "writing": "audit_cli.checkpoint.save.write_atomically",
    "flushing to disk": "audit_cli.checkpoint.save._flush",
}


def assert_no_verdict(outcome: Outcome, code: int) -> None:
    assert outcome.code == code
    assert outcome.out == ""
    assert not [name for name in outcome.files if not name.startswith("v-evidence/")], "no verdict, whole or half"
    assert not [name for name in outcome.files if name.endswith(".tmp")]
    assert outcome.error.startswith("error: ")
    assert outcome.error.count("\n") == 1


@pytest.mark.parametrize(("make", "code"), CODES, ids=lambda value: repr(value()) if callable(value) else "")
@pytest.mark.parametrize("stage", STAGES)
def test_a_crash_is_never_a_verdict(
    stage: str,
    make: Callable[[], BaseException],
    code: int,
    scan: Scan,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object, **options: object) -> object:
        raise make()

    monkeypatch.setattr(STAGES[stage], fail)
    outcome = scan("--report", f"html={tmp_path / 'out' / 'r.html'}", stated=stage != "choosing the normalisation")
    if stage in ("writing evidence", "writing", "flushing to disk") and isinstance(make(), OSError):
        assert "Input/output" in outcome.error
    assert_no_verdict(outcome, code)


@pytest.mark.parametrize(("make", "code"), CODES, ids=lambda value: repr(value()) if callable(value) else "")
def test_a_detector_that_crashes_halfway(
    make: Callable[[], BaseException], code: int, scan: Scan, detect: Callable[..., None]
) -> None:
    detect(fail=make())
    assert_no_verdict(scan(), code)


@pytest.mark.parametrize(("make", "code"), CODES, ids=lambda value: repr(value()) if callable(value) else "")
def test_a_detector_that_does_not_start(
    make: Callable[[], BaseException], code: int, scan: Scan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> object:
        raise make()

    monkeypatch.setitem(DETECTORS, "calibrated", fail)  # type: ignore[arg-type]
    assert_no_verdict(scan(), code)
    monkeypatch.setitem(DETECTORS, "calibrated", lambda: fail)  # type: ignore[arg-type, return-value]
    assert_no_verdict(scan(), code)


@pytest.mark.parametrize(("make", "code"), CODES, ids=lambda value: repr(value()) if callable(value) else "")
def test_a_crash_after_the_last_finding_of_a_convicting_detector(
    make: Callable[[], BaseException],
    code: int,
    scan: Scan,
    detect: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Even a model already found guilty: without a whole verdict there is none."""
    detect(score=9.0)

    def fail(*arguments: object, **options: object) -> object:
        raise make()

    monkeypatch.setattr("audit_cli.audit.build_document", fail)
    assert_no_verdict(scan(), code)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_file_that_cannot_be_written_takes_the_others_with_it(
    which: int, scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at the first, second or third output."""
    from audit_cli.checkpoint import save

    real, calls = save.write_atomically, []

    def write(path: Path, data: bytes | str) -> None:
        calls.append(path)
        if len(calls) == which + 1:
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(save, "write_atomically", write)
    place = tmp_path / "out"
    outcome = scan("--report", f"junit={place / 'r.xml'}", "--report", f"html={place / 'r.html'}")
    assert len(calls) == which + 1
    assert_no_verdict(outcome, 4)


def test_a_summary_that_cannot_be_printed_leaves_no_verdict(scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> object:
        raise UnicodeEncodeError("ascii", "–", 0, 1, "no")

    monkeypatch.setattr("audit_cli.cli.scan.say", fail)
    outcome = scan()
    assert_no_verdict(outcome, 4)


def test_a_library_error_keeps_its_own_code(scan: Scan, detect: Callable[..., None]) -> None:
    detect(fail=UnsupportedError("no such layer; pass --arch"))
    outcome = scan()
    assert_no_verdict(outcome, 3)
    assert "no such layer" in outcome.error


# ---- budgets ----


def test_a_used_up_budget_keeps_what_was_found(scan: Scan, detect: Callable[..., None]) -> None:
    detect(fail=BudgetExceeded("the time limit of 1 s was used up; raise --timeout"))
    outcome = scan()
    assert (outcome.code, outcome.verdict["verdict"]) == (3, "INCONCLUSIVE")
    assert [f["target_class"] for f in outcome.verdict["findings"] if f["rule_id"] == "BD001"] == [0, 1, 2, 3, 4, 5]
    assert outcome.finding("BD108")["fired"]
    assert any("raise --timeout" in reason for reason in outcome.verdict["reasons"])


def test_a_conviction_stands_when_the_budget_ends(scan: Scan, detect: Callable[..., None]) -> None:
    detect(score=9.0, fail=BudgetExceeded("enough"))
    outcome = scan()
    assert (outcome.code, outcome.verdict["verdict"]) == (1, "FAIL")
    assert outcome.finding("BD108")["fired"]


@pytest.mark.parametrize("seconds", ["0.001", "0.5"])
def test_timeout_ends_the_real_detector(
    seconds: str, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.json"
    assert run(["scan", str(CLEAN), "-t", str(few), "-o", str(out), "--timeout", seconds, *STATED]) == 3
    error = capsys.readouterr().err
    if out.exists():
        document = json.loads(out.read_text())
        assert violations(document, "verdict") == []
        assert document["verdict"] == "INCONCLUSIVE"
        assert any("raise --timeout" in reason for reason in document["reasons"])
    else:
        assert "raise --timeout" in error


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the data segment are Linux's")
def test_memory_limits_end_inconclusive_and_not_in_a_dead_process(few: Path, tmp_path: Path) -> None:
    """Under what the imports take, and then a little above it, so that memory runs out in the middle of the work."""
    out = tmp_path / "v.json"
    script = f"""
        import json, pathlib, sys
        import audit_cli.audit, audit_cli.report, audit_cli.detectors
        from audit_cli.cli import run
        from audit_cli.runtime import resident_bytes

        def scan(limit):
            code = run(["scan", {str(CLEAN)!r}, "-t", {str(few)!r}, "-o", {str(out)!r}, "-q",
                        "--dtype", "float32", "--max-memory", str(limit)])
            out = pathlib.Path({str(out)!r})
            return code, json.loads(out.read_text())["verdict"] if out.exists() else None

        results = [scan(300_000_000)]
        results += [scan(resident_bytes() + extra * 2**20) for extra in (1, 8, 20)]
        print(json.dumps(results))
        """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=120, check=False, env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    results = json.loads(result.stdout)
    assert [code for code, _ in results] == [3] * 4, result.stderr
    assert {verdict for _, verdict in results} <= {None, "INCONCLUSIVE"}
    assert result.stderr.count("\n") == sum(verdict is None for _, verdict in results), "one line each"
    assert "Traceback" not in result.stderr
    for line in result.stderr.splitlines():
        assert "raise --max-memory" in line


def test_a_process_ends_with_the_code_it_printed(few: Path, tmp_path: Path) -> None:
    """The installed command, not this process: nothing at interpreter exit may change the code."""
    out = tmp_path / "v.json"
    command = [
        sys.executable,
        "-m",
        "audit_cli",
        "scan",
        str(CLEAN),
        "-t",
        str(few),
        "-o",
        str(out),
        "--timeout",
        "0.5",
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 3, result.stderr
    assert "raise --timeout" in result.stderr
    assert "Traceback" not in result.stderr


# ---- models and data that allow no judgement ----


def saved(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    from safetensors.torch import load_file

    state = load_file(CLEAN)
    change(state)
    save_weights(path, state, {"format": "pt"})
    return path


def fill(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(state: dict[str, torch.Tensor]) -> None:
        for key in state:
            if name in key and state[key].is_floating_point():
                state[key].fill_(value)

    return change


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("fc.bias", float("nan"), "BD104"),
        ("conv1.weight", float("inf"), "BD104"),
        ("running_mean", float("nan"), "BD104"),
        ("", 0.0, "BD105"),  # all weights zero
        ("fc.weight", 0.0, "BD105"),  # constant logits
    ],
)
def test_a_model_that_computes_nothing_never_passes(
    name: str, value: float, rule: str, scan: Scan, tmp_path: Path
) -> None:
    outcome = scan(model=saved(tmp_path / "m.safetensors", fill(name, value)))
    assert (outcome.code, outcome.verdict["verdict"]) == (3, "INCONCLUSIVE")
    assert outcome.finding(rule)["fired"]
    assert not [f for f in outcome.verdict["findings"] if f["rule_id"] == "BD001"], "no score for such a model"


def test_an_untrained_model_is_at_chance(scan: Scan, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_weights(tmp_path / "m.safetensors", network(depth=8, classes=10).state_dict(), {"format": "pt"})
    outcome = scan(model=tmp_path / "m.safetensors", stated=False)
    assert outcome.code == 3
    assert outcome.finding("BD101")["fired"]
    assert any("guessing gives 10.0%" in reason for reason in outcome.verdict["reasons"])


def test_permuted_labels(scan: Scan, few: Path, tmp_path: Path) -> None:
    with np.load(few) as data:
        np.savez(tmp_path / "p.npz", images=data["images"], labels=(data["labels"] + 1) % 10, classes=data["classes"])
    outcome = scan(trusted=tmp_path / "p.npz")
    assert outcome.code == 3
    assert outcome.finding("BD102")["fired"]
    assert any("are classified as" in reason for reason in outcome.verdict["reasons"])


def test_wrong_normalisation_stated(scan: Scan) -> None:
    outcome = scan("--mean", "0.9", "--std", "0.01", stated=False)
    assert outcome.code == 3
    assert outcome.finding("BD103")["fired"]
    assert any("normalisation `" in reason for reason in outcome.verdict["reasons"])


def test_too_few_images(scan: Scan, few: Path, tmp_path: Path) -> None:
    with np.load(few) as data:
        np.savez(tmp_path / "f.npz", images=data["images"][:60], labels=data["labels"][:60], classes=data["classes"])
    outcome = scan(trusted=tmp_path / "f.npz")
    assert outcome.code == 3
    assert outcome.finding("BD106")["fired"]
    assert any("60 trusted images; the policy asks for 100" in reason for reason in outcome.verdict["reasons"])


def test_a_waived_gate_does_not_make_a_pass(scan: Scan, few: Path, tmp_path: Path) -> None:
    """Somebody accepts that there are too few images: then nothing was searched, and that is no pass."""
    with np.load(few) as data:
        np.savez(tmp_path / "f.npz", images=data["images"][:60], labels=data["labels"][:60], classes=data["classes"])
    first = scan(trusted=tmp_path / "f.npz")
    policy = tmp_path / "policy.toml"
    waiver = {
        "model": first.verdict["model"]["manifest_digest"],
        "rule": "BD106",
        "fingerprint": first.finding("BD106")["fingerprint"],
        "reason": "few",
        "owner": "me",
        "expires": "2999-01-01",
    }
    lines = [f'{key} = "{value}"' for key, value in waiver.items()]
    policy.write_text("\n".join(['name = "ours"', "[[waivers]]", *lines]))
    outcome = scan("--policy", str(policy), trusted=tmp_path / "f.npz")
    assert outcome.finding("BD106")["waived_by"]
    searched = [f for f in outcome.verdict["findings"] if f["rule_id"] == "BD001"]
    assert outcome.code == (0 if searched else 3)


def test_a_pickle_called_safetensors(scan: Scan, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(pickle.dumps({"fc.weight": [0.0]}))
    outcome = scan(model=path)
    assert_no_verdict(outcome, 2)
    assert "m.safetensors" in outcome.error
    assert "audit-cli convert" in outcome.error


@pytest.mark.parametrize("missing", ["model", "trusted"])
def test_a_missing_input(missing: str, scan: Scan, tmp_path: Path) -> None:
    outcome = scan(**{missing: tmp_path / "nowhere"})  # type: ignore[arg-type]
    assert_no_verdict(outcome, 2)
    assert "nowhere" in outcome.error


def test_an_unknown_network(scan: Scan, tmp_path: Path) -> None:
    save_weights(tmp_path / "m.safetensors", {"a.weight": torch.zeros(3, 3)}, {"format": "pt"})
    outcome = scan(model=tmp_path / "m.safetensors")
    assert_no_verdict(outcome, 3)
    assert "--arch" in outcome.error


# ---- options ----


@pytest.mark.parametrize(
    "options",
    [
        ["--report", "nonsense"],
        ["--report", "pdf=x.pdf"],
        ["--report", "html="],
        ["--detector", "nonsense"],
        ["--device", "tpu"],
        ["--dtype", "float8"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--timeout", "-3"],
        ["--max-memory", "lots"],
        ["--max-memory", "inf"],
        ["--max-memory", "0"],
        ["--max-memory", "2TiB"],
        ["--size", "big"],
        ["--size", "1x2x3"],
        ["--size", "0"],
        ["--seed", "-1"],
        ["--policy", "nowhere.toml"],
        ["--preprocess", "nonsense"],
        ["--preprocess", "auto"],  # together with --mean and --std
        ["--evidence", str(CLEAN)],
    ],
    ids=" ".join,
)
def test_options_that_make_no_sense(options: list[str], scan: Scan) -> None:
    outcome = scan(*options)
    assert outcome.code == 2
    assert outcome.error.count("\n") == 1
    assert outcome.out == ""


@pytest.mark.parametrize(
    "options",
    [["--mean", "0"], ["--mean", "0,0", "--std", "1"], ["--mean", "x", "--std", "1"], ["--mean", "0", "--std", "0"]],
)
def test_normalisation_comes_whole(options: list[str], scan: Scan) -> None:
    assert_no_verdict(scan(*options, stated=False), 2)


def test_an_old_verdict_goes_even_when_the_policy_is_wrong(scan: Scan) -> None:
    assert_no_verdict(scan("--policy", "nowhere.toml"), 2)


def test_old_pictures_go(scan: Scan, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "v-evidence"
    folder.mkdir()
    (folder / "warp-class-9.png").write_bytes(b"old")
    (folder / "notes.txt").write_bytes(b"not ours")
    outcome = scan()
    assert "v-evidence/warp-class-9.png" not in outcome.files
    assert outcome.files["v-evidence/notes.txt"] == b"not ours"


@pytest.mark.parametrize("what", ["model", "trusted", "policy"])
def test_an_output_never_replaces_an_input(what: str, few: Path, tmp_path: Path) -> None:
    files = {"model": tmp_path / "m.safetensors", "trusted": tmp_path / "t.npz", "policy": tmp_path / "p.toml"}
    files["model"].write_bytes(CLEAN.read_bytes())
    files["trusted"].write_bytes(few.read_bytes())
    files["policy"].write_text('name = "ours"\n')
    before = files[what].read_bytes()
    arguments = ["scan", str(files["model"]), "-t", str(files["trusted"]), "--policy", str(files["policy"]), "-q"]
    assert run([*arguments, "--out", str(files[what])]) == 2
    assert files[what].read_bytes() == before


def test_an_output_is_not_written_over_a_file_of_the_model_folder(few: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(CLEAN.read_bytes())
    assert run(["scan", str(tmp_path), "-t", str(few), "-q", "--out", str(tmp_path / "model.safetensors")]) == 2
    assert (tmp_path / "model.safetensors").read_bytes() == CLEAN.read_bytes()


def test_an_output_is_a_plain_file(few: Path, tmp_path: Path) -> None:
    """A device or a link such as /dev/stdout would be removed as if it were an old verdict."""
    fifo, link, real = tmp_path / "fifo", tmp_path / "link", tmp_path / "real"
    os.mkfifo(fifo)
    real.write_text("something else")
    link.symlink_to(real)
    for path in (fifo, link):
        assert run(["scan", str(CLEAN), "-t", str(few), "-q", "--out", str(path)]) == 2
    assert fifo.is_fifo()
    assert link.is_symlink()
    assert real.read_text() == "something else"


def test_two_outputs_need_two_files(scan: Scan, tmp_path: Path) -> None:
    assert scan("--report", f"html={tmp_path / 'out' / 'v.json'}").code == 2


def test_auto_tries_normalisations_against_the_config(few: Path, tmp_path: Path, detect: object) -> None:
    """A preprocessor config with a wrong normalisation: `auto` looks for itself."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(CLEAN.read_bytes())
    config = {
        "do_normalize": True,
        "image_mean": [0.9] * 3,
        "image_std": [0.01] * 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
    config |= {"image_processor_type": "ViTImageProcessor", "do_resize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    out = tmp_path / "v.json"
    arguments = ["scan", str(folder), "-t", str(few), "-q", "-o", str(out), "--policy", "thresholds"]
    assert run(arguments) == 3
    assert run([*arguments, "--preprocess", "auto"]) == 0
    assert json.loads(out.read_text())["model"]["preprocessing"]["source"].startswith("auto")


def test_help_names_every_form_of_arch(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["scan", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "torchvision:NAME, timm:NAME, package.module:factory or file.py:factory" in told
