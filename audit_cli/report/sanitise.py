"""The one sanitiser: what a hostile checkpoint or data folder may say in our output.

Class names, file names and library messages reach terminals, CI logs, Markdown, HTML and XML. Here they lose everything
but printable characters on one line; each renderer then escapes what is left in the manner of its own format.
"""

from __future__ import annotations

import re
import unicodedata

# CSI sequences; OSC, DCS, APC, PM and SOS strings up to their terminator; two- and three-character escapes.
_ESCAPE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)
_SPACE = re.compile(r"\s+")
# CI runners obey `::error::` where a line begins with it, and a report may wrap a line anywhere; `##[error]`,
# `##vso[…]` and `##teamcity[…]` they obey anywhere.
_COLONS = re.compile(r":(?=:)")
_HASHES = re.compile(r"#(?=#(?:vso|teamcity)?\[)", re.IGNORECASE)


def clean(text: str, limit: int = 200) -> str:
    """`text` as one printable line of at most `limit` characters.

    Removes ANSI escapes, control, bidirectional, zero-width, private and unassigned characters (Unicode categories C*),
    collapses whitespace, breaks up CI workflow commands, and ends with `…` where something was cut off.
    """
    text = text[: 20 * limit]  # bounds the work on a hostile megabyte
    text = _SPACE.sub(" ", _ESCAPE.sub("", text))
    text = "".join(character for character in text if unicodedata.category(character)[0] != "C").strip()
    text = _SPACE.sub(" ", _HASHES.sub("# ", _COLONS.sub(": ", text)))
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
