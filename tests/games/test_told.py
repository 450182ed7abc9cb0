"""README.md and the pages in fixtures/results: their tables are those of the cells, and their links lead somewhere."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import pytest

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FIXTURES / "scripts"))
    return importlib.import_module("tables")


def test_the_tables_told_are_those_of_the_cells(script: ModuleType) -> None:
    pages = [path.read_text() for path in script.PAGES]
    assert len(pages) == 4
    assert sum(page.count("<!-- table: ") for page in pages) == len(script.TABLES) == 29
    assert sum(len(re.findall(r"(?m)^<!-- table: \w+ -->\n\|.*\n\|---", page)) for page in pages) == 29
    assert [script.rendered(page) for page in pages] == pages
    assert script.rendered("<!-- table: beside -->\n| wrong |\n\nend\n").count("|") > 100


def test_the_links_lead_somewhere(script: ModuleType) -> None:
    links = [(page, link) for page in script.PAGES for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text())]
    assert len(links) > 40
    for page, link in links:
        path, _, anchor = link.partition("#")
        leads_to = page.parent / path if path else page
        if leads_to.is_dir():
            leads_to /= "README.md"
        assert leads_to.exists(), f"{page}: {link}"
        assert not anchor or anchor in headings(leads_to.read_text()), f"{page}: {link}"


def headings(page: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    titles = re.findall(r"(?m)^#+ (.+)$", page)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
