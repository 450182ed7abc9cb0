from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Literal

import pytest

from audit_cli import resources
from audit_cli.errors import AuditError, UsageError
from audit_cli.resources import bundled, rule_page, violations

CHECKOUT = Path(resources.__file__).parents[1]


@pytest.mark.parametrize("kind", ["rules", "fixtures"])
class TestBundled:
    def test_in_a_checkout(self, kind: Literal["rules", "fixtures"]) -> None:
        assert bundled(kind) == CHECKOUT / kind

    def test_in_an_installed_package(
        self, kind: Literal["rules", "fixtures"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = tmp_path / "site-packages" / "audit_cli"
        folder = package / "_bundled" / kind
        folder.mkdir(parents=True)
        (folder / "default.toml").touch()
        monkeypatch.setattr(resources, "_PACKAGE", package)
        assert bundled(kind) == folder

    def test_a_stranger_beside_the_package_is_not_ours(
        self, kind: Literal["rules", "fixtures"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "site-packages" / kind).mkdir(parents=True)
        monkeypatch.setattr(resources, "_PACKAGE", tmp_path / "site-packages" / "audit_cli")
        with pytest.raises(AuditError, match="install audit-cli again"):
            bundled(kind)


def test_a_rule_that_is_none() -> None:
    with pytest.raises(UsageError, match="no rule 'X'; the rules are BD001"):
        rule_page("X")


def test_violations_say_where() -> None:
    lines = violations({"name": 3, "rules": {"BD001": {"threshold": float("nan")}}}, "policy")
    assert any(line.startswith("name: 3 is not of type") for line in lines)
    assert "rules.BD001.threshold: is not a finite number" in lines


def test_violations_of_any_of_are_told_once() -> None:
    lines = violations({"rules": {"BD001": {"severity": "note", "threshold": "x"}}}, "policy")
    assert "rules.BD001.threshold: 'x' is not valid under any of the given schemas" in lines
    lines = violations({"rules": {"BD001": {"severity": "note", "threshold": {"default": 1, "mask": 2.5}}}}, "policy")
    assert not any(line.startswith("rules") for line in lines)


@pytest.mark.parametrize(
    "document",
    [
        {"findings": [0] * 1_000_000},
        {"model": {"prompts": {"labels": [0] * 1_000_000, "templates": []}}},  # below anyOf
        {"environment": {"stages": {f"x{i}": float("nan") for i in range(100_000)}}},
        {"x" * 1_000_000: [0] * 1_000_000},
    ],
    ids=["findings", "labels", "numbers", "a long key"],
)
def test_a_document_full_of_violations_takes_no_time(document: object) -> None:
    started = time.process_time()
    assert 0 < len(violations(document, "verdict")) <= 2 * resources.MOST_VIOLATIONS
    assert time.process_time() - started < 20  # minutes, if all were collected


def test_the_wheel_carries_rules_and_fixtures(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("needs hatchling, the build backend")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-q",
        "-w",
        tmp_path,
        CHECKOUT,
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    manifest = json.loads((CHECKOUT / "fixtures" / "manifest.json").read_text())
    models = [entry["file"] for entry in (manifest["trusted"], *manifest["models"].values())]
    carried = [path for path in (CHECKOUT / "rules").rglob("*") if path.is_file()]
    carried += [CHECKOUT / "fixtures" / name for name in ("manifest.json", *models)]
    for path in carried:
        assert f"audit_cli/_bundled/{path.relative_to(CHECKOUT).as_posix()}" in names
    assert not [name for name in names if "/results/" in name or "/benches/" in name or name.endswith("_study.py")]
