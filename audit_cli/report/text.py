"""The verdict for a terminal or a log: headline, reasons, classes, what was audited, what was not covered."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from audit_cli.report.sanitise import clean
from audit_cli.report.wording import (
    about_repair,
    class_name,
    compared,
    contents,
    facts,
    headline,
    limit,
    p_value,
    percent,
    ratio,
    remarks,
    statement,
    triggers,
    why,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from audit_cli.types import Verdict

STYLES = {"PASS": "bold green", "FAIL": "bold red", "INCONCLUSIVE": "bold yellow"}
ROOM_FOR_ALL = 52  # columns of text that the class table needs with a threshold and a p-value
CLASSES = 5  # rows of the class table
LINES = 6  # of any list


def render(verdict: Verdict, width: int = 80, colour: bool = False) -> str:
    """Plain text of at most `width` columns (40 and up), with ANSI colours when `colour`."""
    from rich.console import Console

    document = contents(verdict)
    out = io.StringIO()
    console = Console(
        file=out,
        width=max(width, 40),
        force_terminal=colour,
        color_system="standard" if colour else None,
        markup=False,
        highlight=False,
        emoji=False,
        legacy_windows=False,
    )
    console.print(headline(document), style=STYLES[document["verdict"]])
    if reasons := why(document):
        console.print()
        _bullets(console, [clean(reason, 500) for reason in reasons])
    if found := triggers(document, CLASSES):
        console.print()
        console.print(_class_table(found, console.width))
    if document["repair"]:
        console.print()
        console.print(_repair_line(document["repair"]))
        for line in about_repair(document["repair"]):
            console.print(_plain(line))
    if notes := [_remark(finding) for finding in remarks(document) if finding["severity"] == "note"]:
        console.print("\nNotes", style="bold")
        _bullets(console, notes)
    console.print()
    console.print(_fact_table(document))
    if document["limitations"]:
        console.print("\nLimitations", style="bold")
        _bullets(console, [clean(line, 500) for line in document["limitations"]], most=100)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _bullets(console: Console, lines: list[str], most: int = LINES) -> None:
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    for line in lines[:most]:
        grid.add_row("•", _plain(line))
    if len(lines) > most:
        grid.add_row("", f"and {len(lines) - most} more, in the JSON verdict")
    console.print(grid)


def _class_table(found: list[dict[str, Any]], width: int) -> Table:
    """With p-values where there are any; these say more than the threshold, where there is no room for both."""
    from rich.table import Table

    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "score": lambda finding: ratio(finding["score"]),
        "limit": limit,
        "p": p_value,
        "success": lambda finding: percent(finding["asr_before"]),
    }
    if not compared(found):
        del columns["p"]
    elif width < ROOM_FOR_ALL:
        del columns["limit"]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("class", overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column("family", overflow="ellipsis", no_wrap=True, max_width=12)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for finding in found:
        marked = finding["fired"] and not finding["waived_by"]
        table.add_row(
            _plain(f"{finding['target_class']} {class_name(finding)}"),
            _plain(clean(finding["family"], 20)),
            *(tell(finding) for tell in columns.values()),
            style="red" if marked else None,
        )
    return table


def _fact_table(document: Mapping[str, Any]) -> Table:
    from rich.table import Table

    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for label, value in facts(document):
        grid.add_row(label, _plain(value))
    return grid


def _repair_line(repair: Mapping[str, Any]) -> Text:
    before, after = repair["before"], repair["after"]
    return _plain(
        f"Repaired by {clean(repair['method'], 60)}: "
        f"clean accuracy {percent(before['cda'])} → {percent(after['cda'])}, "
        f"trigger success {percent(before['asr'])} → {percent(after['asr'])}, "
        f"highest score {ratio(before['score'])} → {ratio(after['score'])}"
    )


def _remark(finding: Mapping[str, Any]) -> str:
    return f"{statement(finding)} ({finding['rule_id']})"


def _plain(text: str) -> Text:
    """Rich reads no markup in a Text."""
    from rich.text import Text

    return Text(text)
