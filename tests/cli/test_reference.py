from __future__ import annotations

import json
from pathlib import Path

import pytest

from audit_cli.cli import reference, run
from audit_cli.errors import AuditError
from audit_cli.resources import rule_pages, version


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    assert capsys.readouterr().out == f"audit-cli {version()}\n"


def test_rules_table_lists_every_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines[1:]] == list(rule_pages())
    assert "\x1b" not in "".join(lines)


def test_rules_json_under_a_policy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    policy = tmp_path / "p.toml"
    policy.write_text("[rules.BD001]\nthreshold = { mask = 2.25 }\n[rules.BD112]\nseverity = 'fail'\n")
    assert run(["rules", "--format", "json", "--policy", str(policy)]) == 0
    rules = {rule["id"]: rule for rule in json.loads(capsys.readouterr().out)}
    assert rules["BD001"]["threshold"]["mask"] == 2.25
    assert rules["BD112"]["severity"] == "fail"


def test_rules_with_a_bad_policy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["rules", "--policy", "nowhere.toml"]) == 2
    assert "cannot read policy nowhere.toml" in capsys.readouterr().err


@pytest.mark.parametrize("rule", ["BD001", "bd001"])
def test_explain(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", rule]) == 0
    assert capsys.readouterr().out.startswith("# BD001: ")


@pytest.mark.parametrize("rule", ["BD9", "../default", "\x1b[31m", ""])
def test_explain_what_is_no_rule(rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", rule]) == 2
    error = capsys.readouterr().err
    assert "the rules are BD001, BD002" in error
    assert "\x1b" not in error


@pytest.mark.parametrize("name", ["verdict", "policy"])
def test_schema(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", name]) == 0
    assert json.loads(capsys.readouterr().out)["$id"] == f"urn:audit-cli:{name}:1"


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    for label in ("python", "torch", "device", "threads", "bfloat16", "memory", "rules", "fixtures"):
        assert f"\n{label} " in out


def test_doctor_says_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> str:
        raise AuditError("the installation has no bundled rules; install audit-cli again")

    monkeypatch.setitem(reference.PROBES, "rules", missing)
    assert run(["doctor"]) == 4
    assert "rules      PROBLEM: the installation has no bundled rules" in capsys.readouterr().out
