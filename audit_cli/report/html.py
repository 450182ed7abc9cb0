"""The verdict as one self-contained HTML page: no script, no remote asset, evidence images embedded.

Every string passes through `_text`, and a content security policy forbids what an escape might let through.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    pictured,
    ratio,
    remarks,
    statement,
    target,
    triggers,
    why,
)

if TYPE_CHECKING:
    from audit_cli.types import Verdict

CLASSES = 20
IMAGE_CAP = 2_000_000  # bytes of one evidence image
PICTURED = "Left: the trigger alone on grey, black and white. Rows: trusted images, with the trigger, the change."
_PNG = b"\x89PNG\r\n\x1a\n"

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5b6475; --line: #dfe3ea; --page: #f6f7f9; --card: #fff;
  --pass: #12703f; --fail: #b3261e; --inconclusive: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b5; --line: #30363f; --page: #14171c;
  --card: #1b1f26; --pass: #58c98b; --fail: #ff8a80; --inconclusive: #f0b955; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 2rem 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 54rem; margin: auto; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.5rem;
  margin: 1rem 0; overflow-x: auto; }
header { border-left: 6px solid var(--tone); padding-left: 1.1rem; margin-bottom: 1.5rem; }
header p, dt, .soft { color: var(--soft); }
header p { margin: .2rem 0; }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0; color: var(--tone); overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: .2rem 0 .6rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .4rem .8rem .4rem 0; border-top: 1px solid var(--line); }
td:first-child { min-width: 5rem; overflow-wrap: anywhere; }
td.n { white-space: nowrap; }
thead th { border: 0; color: var(--soft); font-weight: 500; }
.n { text-align: right; }
.fired td { color: var(--fail); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 0; }
dd { margin: 0; overflow-wrap: anywhere; }
ul { padding-left: 1.2rem; margin: 0; }
li { overflow-wrap: anywhere; }
figure { display: inline-block; margin: 0 1rem 1rem 0; }
@media (max-width: 30rem) { body { padding: 1rem .5rem; font-size: 15px; } section { padding: .8rem 1rem; }
  th, td { padding-right: .5rem; } td:first-child { min-width: 4rem; } }
img { display: block; image-rendering: pixelated; min-width: 128px; max-width: 100%; border: 1px solid var(--line); }
"""

_CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def render(verdict: Verdict, base: Path | None = None) -> str:
    """A page for a person. base: the folder that `evidence` paths are relative to; None embeds no images."""
    document = contents(verdict)
    title = _text(headline(document))
    repair = document["repair"]
    parts = [
        _section("Why", _list(why(document))),
        _section("Classes", _classes(triggers(document, CLASSES))),
        _section("Evidence", _evidence(pictured(document, CLASSES), base)),
        _section("Repair", _repair(repair) if repair else ""),
        _section("Notes", _list([statement(item) for item in remarks(document) if item["severity"] == "note"])),
        _section("Audit", _facts(document)),
        _section("Limitations", _list(document["limitations"])),
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_CSP}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>{_STYLE}:root {{ --tone: var(--{_text(document["verdict"].lower())}); }}</style>
</head>
<body>
<main>
<header><h1>{title}</h1><p>audit-cli {_text(document["tool"]["version"])}, {_text(document["created_at"])}</p></header>
{"".join(parts)}</main>
</body>
</html>
"""


def _text(value: object, limit: int = 500) -> str:
    """The only way a value gets into the page."""
    return html.escape(clean(str(value), limit), quote=True)


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>\n" if body else ""


def _list(lines: list[str]) -> str:
    items = "".join(f"<li>{_text(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _facts(document: Mapping[str, Any]) -> str:
    return (
        "<dl>"
        + "".join(f"<dt>{_text(label)}</dt><dd>{_text(value)}</dd>" for label, value in facts(document))
        + "</dl>"
    )


def _classes(found: list[dict[str, Any]]) -> str:
    if not found:
        return ""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "score": lambda item: ratio(item["score"]),
        "threshold": limit,
        **({"p-value": p_value} if compared(found) else {}),
        "success": lambda item: percent(item["asr_before"]),
    }
    rows = "".join(
        f"<tr{_fired(item)}><td>{_text(target(item))}{' (waived)' if item['waived_by'] else ''}</td>"
        f"<td>{_text(item['family'])}</td>"
        + "".join(f"<td class=n>{_text(told(item))}</td>" for told in columns.values())
        + "</tr>"
        for item in found
    )
    head = "<th>class</th><th>family</th>" + "".join(f"<th class=n>{name}</th>" for name in columns)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _fired(finding: Mapping[str, Any]) -> str:
    return " class=fired" if finding["fired"] and not finding["waived_by"] else ""


def _repair(repair: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{label}</td><td class=n>{_text(percent(side['cda']))}</td>"
        f"<td class=n>{_text(percent(side['asr']))}</td><td class=n>{_text(ratio(side['score']))}</td></tr>"
        for label, side in (("before", repair["before"]), ("after", repair["after"]))
    )
    head = f"<th>{_text(repair['method'])}</th><th class=n>clean accuracy</th><th class=n>trigger success</th>"
    head += "<th class=n>highest score</th>"
    told = "".join(f"<p class=soft>{_text(line)}</p>" for line in about_repair(repair))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{told}"


def _evidence(found: list[dict[str, Any]], base: Path | None) -> str:
    """The pictures there are of these findings."""
    figures = "".join(_figure(finding, base) for finding in found)
    return f"<p class=soft>{_text(PICTURED)}</p>{figures}" if figures else ""


def _figure(finding: Mapping[str, Any], base: Path | None) -> str:
    image = _image(finding["evidence"], base) if base and finding["evidence"] else None
    if image is None:
        return ""
    caption = _text(", ".join(filter(None, (target(finding), finding["family"]))))
    return f'<figure><img alt="{caption}" src="{image}"><figcaption class=soft>{caption}</figcaption></figure>'


def _image(evidence: str, base: Path) -> str | None:
    """A data URI of a PNG inside `base`; None for anything else, since a stored verdict may name any path."""
    try:
        path = (base / evidence).resolve()
        if not path.is_relative_to(base.resolve()) or path.stat().st_size > IMAGE_CAP:
            return None
        content = path.read_bytes()
    except (OSError, ValueError):
        return None
    return f"data:image/png;base64,{base64.b64encode(content).decode()}" if content.startswith(_PNG) else None
