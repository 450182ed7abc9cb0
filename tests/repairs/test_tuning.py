"""Hyper-parameters by self-poisoning, and how a policy hands them to a repair."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, cast

import pytest

from audit_cli.cli import run
from audit_cli.errors import PolicyError
from audit_cli.policy import Policy
from audit_cli.repairs import REPAIRS, construct
from audit_cli.repairs.pivotal_tuning import PivotalTuning
from audit_cli.repairs.retraining import CleanRetraining
from audit_cli.repairs.tuning import SPACES
from audit_cli.repairs.weight_decay import WeightDecay

FIXTURES = Path(__file__).parents[2] / "fixtures"


def test_every_repair_can_be_tuned() -> None:
    assert SPACES.keys() == REPAIRS.keys()


@pytest.mark.parametrize("method", list(REPAIRS))
def test_the_search_holds_the_default_and_both_ends_are_possible(method: str) -> None:
    default = cast(Any, REPAIRS[method]())
    for name, bounds in SPACES[method].items():
        assert bounds.low <= getattr(default, name) <= bounds.high
        for value in (bounds.low, bounds.high):
            assert getattr(dataclasses.replace(default, **{name: value}), name) == value


def test_settings_reach_the_repair_they_are_for() -> None:
    settings = {"weight_decay": {"lr": 0.5, "steps": 7}, "nad": {"lr": 0.25}}
    repair = construct("weight_decay", settings)
    assert isinstance(repair, WeightDecay)
    assert (repair.lr, repair.steps, type(repair.steps)) == (0.5, 7, int)
    assert construct("pivotal_tuning", settings) == PivotalTuning()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prayer": {"lr": 1.0}}, "no such repair"),
        ({"weight_decay": {"speed": 1.0}}, "no number `speed`"),
        ({"pivotal_tuning": {"reduction": 1.0}}, "no number `reduction`"),
        ({"weight_decay": {"lr": -1.0}}, "repair.settings.weight_decay"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, dict[str, float]], said: str) -> None:
    with pytest.raises(PolicyError, match=said):
        construct("nad", settings)


def tune(out: Path, *more: str) -> int:
    fixture, trusted = FIXTURES / "digits-clean.safetensors", FIXTURES / "digits-trusted.npz"
    words = ["tune", str(fixture), "--trusted", str(trusted), "--out", str(out), "--method", "clean_retraining"]
    stated = ["--mean", "0,0,0", "--std", "1,1,1", "--device", "cpu", "--dtype", "float32", "--quiet"]
    return run([*words, *stated, *more])


def test_a_search_that_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optuna")
    out = tmp_path / "tuned.toml"
    fits: list[float] = []
    whole = CleanRetraining.__call__

    def counted(self: CleanRetraining, *args: Any, **kwargs: Any) -> Any:
        fits.append(self.lr)
        return whole(dataclasses.replace(self, epochs=2), *args, **kwargs)

    monkeypatch.setattr(CleanRetraining, "__call__", counted)
    assert tune(out, "--trials", "2") == 0
    assert len(fits) == 2
    assert tune(out, "--trials", "3") == 0
    assert len(set(fits)) == 3, "a resumed search tries the same settings again"
    assert tune(out, "--trials", "3") == 0
    assert len(fits) == 3
    written = tomllib.loads(out.read_text())["repair"]["settings"]["clean_retraining"]["lr"]
    assert written in fits
    policy = Policy.load(out)
    assert construct("clean_retraining", policy.settings) == CleanRetraining(lr=written)


def test_the_policy_in_force_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And another policy is another search."""
    pytest.importorskip("optuna")
    whole = CleanRetraining.__call__
    tried: list[int] = []

    def quick(self: CleanRetraining, pivot: Any, trusted: Any, *args: Any, **kwargs: Any) -> Any:
        tried.append(len(trusted))
        return whole(dataclasses.replace(self, epochs=1), pivot, trusted, *args, **kwargs)

    monkeypatch.setattr(CleanRetraining, "__call__", quick)
    out, own = tmp_path / "tuned.toml", tmp_path / "own" / "gate.toml"
    own.parent.mkdir()
    waiver = f'model = "{"0" * 64}"\nrule = "BD001"\nfingerprint = "{"0" * 16}"\nreason = "r"\nowner = "o"\n'
    own.write_text(
        'name = "gate"\n[repair]\nmax_drop = 0.05\n[repair.settings.nad]\nlr = 0.01\n'
        f'[rules.BD111]\nseverity = "fail"\n[calibration]\nfiles = ["ours.json"]\n'
        f"[[waivers]]\n{waiver}expires = 2030-01-01\n"
    )
    trials = ("--trials", "1", "--store", str(tmp_path / "trials.log"))
    assert tune(out, *trials) == 0
    assert Policy.load(out).rules == Policy.load("default").rules
    assert tune(out, *trials, "--policy", str(own)) == 0
    assert tune(out, *trials, "--policy", str(own), "--mean", "0.01", "--std", "1") == 0
    assert tried == [tried[0]] * 3
    assert tried[0] <= 400 // 4 + 10, "the half that a repair measures on is left alone"
    tuned, before = Policy.load(out), Policy.load(own)
    kept = [f.name for f in dataclasses.fields(Policy) if f.name not in ("name", "sha256", "settings", "path", "table")]
    for name in kept:
        assert getattr(tuned, name) == getattr(before, name), name
    assert tuned.settings.keys() == {"nad", "clean_retraining"}


def test_what_cannot_be_tuned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path / "t.toml", "--method", "prayer") == 2
    assert "expected one of" in capsys.readouterr().err
    assert tune(tmp_path / "t.toml", "--target", "10") == 2
    assert "has 10 classes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_resists_is_inconclusive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    from audit_cli.repairs import tuning

    monkeypatch.setattr(tuning.SelfPoisoning, "__init__", lambda self: object.__setattr__(self, "__dict__", TAME))
    assert tune(tmp_path / "t.toml") == 3
    assert "could not be poisoned" in capsys.readouterr().err
    assert not (tmp_path / "t.toml").exists()


TAME = {"share": 0.01, "patch": 3 / 32, "steps": 1, "lr": 1e-6, "planted": 0.8}
