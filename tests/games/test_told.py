"""The tables that README.md and fixtures/results/README.md show are those of the cells."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"


def test_the_tables_told_are_those_of_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FIXTURES / "scripts"))
    script = importlib.import_module("tables")
    pages = [path.read_text() for path in script.PAGES]
    assert [page.count("<!-- table: ") for page in pages] == [1, 25]
    assert [len(re.findall(r"(?m)^<!-- table: \w+ -->\n\|.*\n\|---", page)) for page in pages] == [1, 25]
    assert [script.rendered(page) for page in pages] == pages
    assert script.rendered("<!-- table: beside -->\n| wrong |\n\nend\n").count("|") > 100
