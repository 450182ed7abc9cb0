"""How a verdict is shown. Each renderer reads only `verdict.document` and returns text; writing it is the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from audit_cli.report import html, json, junit, markdown, sarif, text

if TYPE_CHECKING:
    from audit_cli.types import Verdict


class Renderer(Protocol):
    def __call__(self, verdict: Verdict) -> str: ...


RENDERERS: Mapping[str, Renderer] = {
    "json": json.render,  # the artefact of record, checked against its schema
    "text": text.render,  # also takes width and colour
    "markdown": markdown.render,
    "html": html.render,  # also takes the base folder of the evidence images
    "sarif": sarif.render,
    "junit": junit.render,
}
