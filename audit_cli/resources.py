"""Files that travel with the code: policies, JSON Schemas, rule pages, fixtures.

A wheel carries `rules/` and `fixtures/` inside the package, as `_bundled/`; in a checkout they are at its top level.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

from audit_cli.errors import AuditError, UsageError

_PACKAGE = Path(__file__).resolve().parent
_SENTINEL = {"rules": "default.toml", "fixtures": ""}


def bundled(kind: Literal["rules", "fixtures"]) -> Path:
    """The folder of bundled rules or fixtures. Raises AuditError when the installation lacks it."""
    checkout = _PACKAGE.parent
    candidates = [_PACKAGE / "_bundled" / kind]
    if (checkout / "pyproject.toml").is_file():  # else `rules/` beside the package would be somebody else's
        candidates.append(checkout / kind)
    for folder in candidates:
        if (folder / _SENTINEL[kind]).exists():
            return folder
    raise AuditError(f"the installation has no bundled {kind}; install audit-cli again")


def version() -> str:
    """The installed version, or `0+unknown` in a checkout that was never installed."""
    try:
        return metadata.version("audit-cli")
    except metadata.PackageNotFoundError:
        return "0+unknown"


@dataclass(frozen=True)
class RulePage:
    """One page of `rules/`: what a rule measures, why, what to do. `text` is the whole page in Markdown."""

    id: str
    title: str
    summary: str  # first paragraph, one line
    text: str


def rule_pages() -> dict[str, RulePage]:
    """Every rule's page by rule id, in the order of the ids."""
    return {path.stem: _page(path) for path in sorted(bundled("rules").glob("BD[0-9][0-9][0-9].md"))}


def rule_page(rule_id: str) -> RulePage:
    """The page of one rule, whatever the case of `rule_id`. Raises UsageError naming the rules there are."""
    pages = rule_pages()
    page = pages.get(rule_id.upper())
    if page is None:
        raise UsageError(f"no rule {rule_id[:20]!r}; the rules are {', '.join(pages)}")
    return page


def _page(path: Path) -> RulePage:
    text = path.read_text(encoding="utf-8")
    heading, _, rest = text.partition("\n")
    summary = rest.strip().partition("\n\n")[0]
    return RulePage(path.stem, heading.partition(":")[2].strip(), " ".join(summary.split()), text)


def bundled_calibrations() -> list[Path]:
    """The calibration files that come with the package, by name."""
    return sorted((bundled("rules") / "calibrations").glob("*.json"))


Schema = Literal["verdict", "policy", "calibration"]


def schema(name: Schema) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a verdict, a policy or a calibration."""
    text = (bundled("rules") / f"{name}.schema.json").read_text(encoding="utf-8")
    return cast(dict[str, Any], json.loads(text))


def violations(document: object, name: Schema) -> list[str]:
    """Where `document` breaks the schema, as `path: what`; empty when valid. Quotes it: sanitise before printing."""
    from jsonschema import Draft202012Validator

    errors = sorted(Draft202012Validator(schema(name)).iter_errors(document), key=lambda error: error.json_path)
    lines = [f"{error.json_path.removeprefix('$.')}: {error.message}" for error in errors]
    # JSON Schema takes NaN and infinity for numbers; JSON and every comparison with a threshold do not.
    return lines + [f"{path}: is not a finite number" for path in _not_finite(document, "")]


def _not_finite(value: object, path: str) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _not_finite(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _not_finite(item, f"{path}[{index}]")
