from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from audit_cli.calibration import ONLY_COMPARED
from audit_cli.cli import run
from audit_cli.errors import PolicyError
from audit_cli.policy import BUNDLED, Policy
from audit_cli.report.wording import OUT_OF_REACH
from audit_cli.resources import bundled, rule_pages, schema

WAIVER = """
[[waivers]]
model = "{model}"
rule = "BD001"
fingerprint = "0123456789abcdef"
reason = "the class is a plain colour"
owner = "someone"
expires = {expires}
"""
OPTION = r"--[a-z][a-z-]+"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


class TestBundled:
    def test_default_and_strict_load(self) -> None:
        default, strict = Policy.load("default"), Policy.load("strict")
        assert default.rules["BD001"].severity == "fail"
        assert default.rules.keys() == strict.rules.keys()
        assert strict.min_images > default.min_images
        assert strict.rules["BD112"].severity == "inconclusive"
        assert default.rules["BD112"].severity == "note"
        assert default.sha256 != strict.sha256
        assert default.path is None

    def test_only_thresholds_passes_a_model_that_no_calibration_covers(self) -> None:
        severities = {name: Policy.load(name).rules["BD110"].severity for name in BUNDLED}
        assert severities == {"default": "inconclusive", "strict": "inconclusive", "thresholds": "note"}
        default, thresholds = (Policy.load(name).table for name in ("default", "thresholds"))
        assert {key for key in thresholds if thresholds[key] != default.get(key)} == {"name", "extends", "rules"}
        assert [key for key, rule in thresholds["rules"].items() if rule != default["rules"][key]] == ["BD110"]

    def test_every_bundled_policy_is_listed(self) -> None:
        assert {path.stem for path in bundled("rules").glob("*.toml")} == set(BUNDLED)

    def test_schema_pages_and_default_policy_know_the_same_rules(self) -> None:
        in_schema = schema("policy")["properties"]["rules"]["propertyNames"]["enum"]
        assert list(rule_pages()) == in_schema == sorted(Policy.load("default").rules)

    def test_strict_is_nowhere_laxer(self) -> None:
        rank = {"note": 0, "inconclusive": 1, "fail": 2}
        default, strict = Policy.load("default"), Policy.load("strict")
        for rule_id, rule in default.rules.items():
            assert rank[strict.rules[rule_id].severity] >= rank[rule.severity]
            assert strict.rules[rule_id].threshold <= rule.threshold

    @pytest.mark.parametrize("page", sorted(rule_pages()))
    def test_every_page_has_its_sections(self, page: str) -> None:
        text = rule_pages()[page].text
        assert text.startswith(f"# {page}: ")
        headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert headings == ["What it measures", "Why it matters", "What to do", "References"]
        assert max(map(len, text.splitlines())) <= 88
        assert rule_pages()[page].title
        assert rule_pages()[page].summary.endswith(".")

    def test_pages_name_options_that_exist(self, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments in (["--help"], ["scan", "--help"], ["calibrate", "--help"]):
            assert run(arguments) == 0
        known = set(re.findall(OPTION, capsys.readouterr().out))
        for page in rule_pages().values():
            assert set(re.findall(OPTION, page.text)) <= known, page.id

    def test_schemas_are_schemas(self) -> None:
        from jsonschema import Draft202012Validator

        for name in ("verdict", "policy"):
            Draft202012Validator.check_schema(json.loads((bundled("rules") / f"{name}.schema.json").read_text()))


class TestFile:
    def test_states_only_what_differs(self, tmp_path: Path) -> None:
        path = write(tmp_path / "p.toml", 'name = "ours"\n[rules.BD001]\nthreshold = { mask = 2.5 }\n')
        policy, default = Policy.load(path), Policy.load("default")
        assert policy.name == "ours"
        assert policy.rules["BD001"].limit("mask") == 2.5
        assert policy.rules["BD001"].limit("additive") == default.rules["BD001"].limit("additive")
        assert policy.rules["BD001"].limit("unheard of") == default.rules["BD001"].threshold
        assert policy.rules["BD101"] == default.rules["BD101"]
        assert policy.sha256 != default.sha256

    def test_a_number_replaces_the_whole_table(self, tmp_path: Path) -> None:
        policy = Policy.load(write(tmp_path / "p.toml", "[rules.BD001]\nthreshold = 3\n"))
        assert policy.rules["BD001"].limit("mask") == 3.0

    def test_extends_strict(self, tmp_path: Path) -> None:
        policy = Policy.load(write(tmp_path / "p.toml", 'extends = "strict"\nname = "x"\n'))
        assert policy.expires_days == Policy.load("strict").expires_days

    def test_reads_budget_and_weights(self, tmp_path: Path) -> None:
        text = '[budget]\ntimeout = 60\nmax_memory = 1_000\n[model]\nweights = "model.safetensors"\n'
        policy = Policy.load(write(tmp_path / "p.toml", text))
        assert (policy.timeout, policy.max_memory, policy.weights) == (60, 1000, "model.safetensors")
        assert Policy.load("default").timeout is None

    def test_layout_does_not_change_the_digest_and_content_does(self, tmp_path: Path) -> None:
        one = Policy.load(write(tmp_path / "1.toml", 'name = "n"\n[repair]\nmax_drop = 0.01\n'))
        two = Policy.load(write(tmp_path / "2.toml", '# other\nname="n"\nrepair={max_drop=0.01}\n'))
        three = Policy.load(write(tmp_path / "3.toml", 'name = "n"\n[repair]\nmax_drop = 0.011\n'))
        assert one.sha256 == two.sha256 != three.sha256
        assert re.fullmatch("[0-9a-f]{64}", one.sha256)

    def test_a_copy_of_default_is_default(self, tmp_path: Path) -> None:
        copy = write(tmp_path / "copy.toml", (bundled("rules") / "default.toml").read_text())
        assert Policy.load(copy).sha256 == Policy.load("default").sha256

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("surprise = 1", r"surprise.*audit-cli schema policy"),
            ("[rules.BD001]\ntreshold = 1", "rules.BD001.*treshold"),
            ("[rules.BD999]\nseverity = 'note'\nthreshold = 1", "rules.*BD999"),
            ("[rules.BD001]\nseverity = 'warn'", "rules.BD001.severity"),
            ("[rules.BD001]\nthreshold = nan", "rules.BD001.threshold: is not a finite number"),
            ("[rules.BD001]\nthreshold = { mask = inf }", "rules.BD001.threshold.mask: is not a finite number"),
            ("[rules.BD101]\nthreshold = { mask = 1 }", "rules.BD101.threshold"),
            ("[rules.BD001]\nthreshold = '1.8'", "rules.BD001.threshold"),
            ("[rules.BD001]\nthreshold = true", "rules.BD001.threshold"),
            ("[trusted]\nmin_images = 0", "trusted.min_images"),
            ("[trusted]\nmin_images = 1.5", "trusted.min_images"),
            ("[budget]\ntimeout = 0", "budget.timeout"),
            ("[repair]\nmax_drop = 2", "repair.max_drop"),
            ("rules = 3", "rules"),
            ("extends = 'lax'", "extends one of default, strict, thresholds"),
            ("extends = ['default']", "extends one of default, strict, thresholds"),
            ("name = ''", "name"),
            ("name = ", "is not TOML"),
            ("name = 'a'\nname = 'b'", "is not TOML"),
            (WAIVER.format(model="a" * 64, expires="2026-02-30"), "is not TOML"),
            (WAIVER.format(model="a" * 64, expires="'2026-02-30'"), "no day of the calendar"),
            (WAIVER.format(model="a" * 64, expires="2026-01-01T00:00:00Z"), r"waivers\[0\].expires"),
            (WAIVER.format(model="any", expires="2026-01-01"), r"waivers\[0\].model"),
            (WAIVER.format(model="a" * 64, expires="2026-01-01").replace("owner", "approver"), r"waivers\[0\]"),
        ],
    )
    def test_mistakes_are_errors_that_say_where(self, tmp_path: Path, text: str, message: str) -> None:
        with pytest.raises(PolicyError, match=message) as error:
            Policy.load(write(tmp_path / "p.toml", text))
        assert "\n" not in str(error.value)
        assert error.value.exit_code == 2

    @pytest.mark.parametrize("name", ["missing.toml", ".", "default.toml/x"])
    def test_unreadable_is_a_policy_error(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(PolicyError, match="cannot read policy"):
            Policy.load(tmp_path / name)

    def test_not_text(self, tmp_path: Path) -> None:
        (tmp_path / "p.toml").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(PolicyError, match="is not TOML"):
            Policy.load(tmp_path / "p.toml")

    def test_hostile_keys_are_printable(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyError) as error:
            Policy.load(write(tmp_path / "p.toml", '"\\u001b[31m\\n::error::" = 1'))
        assert "\x1b" not in str(error.value)


class TestPyproject:
    def test_find_reads_the_tool_table(self, tmp_path: Path) -> None:
        write(tmp_path / "pyproject.toml", '[tool.audit-cli]\nname = "here"\n[tool.other]\nx = 1\n')
        policy = Policy.find(tmp_path)
        assert (policy.name, policy.discovered) == ("here", True)
        assert Policy.load(tmp_path / "pyproject.toml").sha256 == policy.sha256

    @pytest.mark.parametrize("text", [None, "[project]\nname = 'x'\n", "tool = 3"])
    def test_find_falls_back_to_default(self, tmp_path: Path, text: str | None) -> None:
        if text is not None:
            write(tmp_path / "pyproject.toml", text)
        assert Policy.find(tmp_path) == Policy.load("default")

    def test_naming_a_pyproject_without_the_table_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(PolicyError, match=r"no \[tool.audit-cli\] table"):
            Policy.load(write(tmp_path / "pyproject.toml", ""))

    def test_a_table_that_is_none_is_an_error(self, tmp_path: Path) -> None:
        write(tmp_path / "pyproject.toml", "[tool]\naudit-cli = 3")
        with pytest.raises(PolicyError, match="not a table"):
            Policy.find(tmp_path)


class TestInside:
    def test_bundled_policies_are_nowhere(self, tmp_path: Path) -> None:
        Policy.load("default").refuse_inside(tmp_path)

    def test_inside_the_audited_folder(self, tmp_path: Path) -> None:
        model = tmp_path / "model"
        (model / "sub").mkdir(parents=True)
        outside = write(tmp_path / "p.toml", "")
        for inside in (write(model / "p.toml", ""), write(model / "sub" / "p.toml", "")):
            with pytest.raises(PolicyError, match="--policy default"):
                Policy.load(inside).refuse_inside(model)
        Policy.load(outside).refuse_inside(model)
        link = tmp_path / "link.toml"
        link.symlink_to(model / "p.toml")
        with pytest.raises(PolicyError):
            Policy.load(link).refuse_inside(model)

    def test_through_a_linked_folder(self, tmp_path: Path) -> None:
        model = tmp_path / "model"
        model.mkdir()
        write(model / "p.toml", "")
        (tmp_path / "alias").symlink_to(model)
        with pytest.raises(PolicyError):
            Policy.load(tmp_path / "alias" / "p.toml").refuse_inside(model)

    def test_beside_a_single_file_only_when_named(self, tmp_path: Path) -> None:
        model = write(tmp_path / "m.safetensors", "")
        write(tmp_path / "pyproject.toml", '[tool.audit-cli]\nname = "planted"\n')
        Policy.load(tmp_path / "pyproject.toml").refuse_inside(model)
        with pytest.raises(PolicyError, match="beside"):
            Policy.find(tmp_path).refuse_inside(model)


def test_default_policy_is_complete_without_inheritance() -> None:
    from audit_cli.resources import violations

    assert violations(tomllib.loads((bundled("rules") / "default.toml").read_text()), "policy") == []


@pytest.mark.parametrize("name", BUNDLED)
def test_what_means_nothing_without_clean_models_is_out_of_reach_of_thresholds(name: str) -> None:
    rule = Policy.load(name).rules["BD001"]
    assert {rule.limit(family) for family in ONLY_COMPARED} == {OUT_OF_REACH}
    assert rule.limit("additive") < 2
