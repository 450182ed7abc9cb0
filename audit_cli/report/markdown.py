"""The verdict as GitHub-flavoured Markdown: for a job summary or a comment on a pull request."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from audit_cli.report.sanitise import clean
from audit_cli.report.wording import (
    about_repair,
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
    target,
    triggers,
    why,
)

if TYPE_CHECKING:
    from audit_cli.types import Verdict

CLASSES = 10

_SPECIAL = re.compile(r"([\\`*_\[\]<>#|~&!$]|:(?=//))")
_AUTOLINK = re.compile(r"www(?=\.)", re.IGNORECASE)


def escape(text: str, limit: int = 500) -> str:
    """`text` as literal Markdown: no emphasis, link, image, HTML, table cell, formula, autolink or mention."""
    literal = _SPECIAL.sub(r"\\\1", clean(text, limit))
    return _AUTOLINK.sub("www<!-- -->", literal).replace("@", "@<!-- -->")


def render(verdict: Verdict) -> str:
    """A heading, the reasons, a table of classes, a table of facts, the limitations."""
    document = contents(verdict)
    lines = [f"## {escape(headline(document))}", ""]
    lines += [f"- {escape(reason)}" for reason in why(document)]
    if found := triggers(document, CLASSES):
        beside = compared(found)
        names, rules = (" p-value |", "--:|") if beside else ("", "")
        lines += ["", f"| class | family | score | threshold |{names} success | |", f"|---|---|--:|--:|{rules}--:|---|"]
        for item in found:
            state = "waived" if item["waived_by"] else "**fired**" if item["fired"] else ""
            cells = [escape(target(item)), escape(item["family"]), ratio(item["score"]), limit(item)]
            cells += [p_value(item)] if beside else []
            lines.append(f"| {' | '.join([*cells, percent(item['asr_before']), state])} |")
    if repair := document["repair"]:
        before, after = repair["before"], repair["after"]
        lines += ["", f"Repaired by {escape(repair['method'])}:", ""]
        lines += ["| | clean accuracy | trigger success | score |", "|---|--:|--:|--:|"]
        for label, side in (("before", before), ("after", after)):
            lines += [f"| {label} | {percent(side['cda'])} | {percent(side['asr'])} | {ratio(side['score'])} |"]
        for line in about_repair(repair):
            lines += ["", escape(line)]
    if notes := [item for item in remarks(document) if item["severity"] == "note"]:
        lines += ["", "**Notes**", ""]
        lines += [f"- {escape(statement(item))} ({escape(item['rule_id'])})" for item in notes]
    lines += ["", "| audit | |", "|---|---|"]
    lines += [f"| {label} | {escape(value)} |" for label, value in facts(document)]
    if document["limitations"]:
        lines += ["", "**Limitations**", ""]
        lines += [f"- {escape(line)}" for line in document["limitations"]]
    return "\n".join(lines) + "\n"
