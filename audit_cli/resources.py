"""Files that travel with the code: policies, JSON Schemas, rule pages, fixtures.

A wheel carries `rules/` and the models of `fixtures/` inside the package, as `_bundled/`; in a checkout they are at its
top level.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from audit_cli.errors import AuditError, UsageError

if TYPE_CHECKING:
    from jsonschema import ValidationError

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
MOST_VIOLATIONS = 20  # told of a document, and searched for: a hostile one has very many


def schema(name: Schema) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a verdict, a policy or a calibration."""
    text = (bundled("rules") / f"{name}.schema.json").read_text(encoding="utf-8")
    return cast(dict[str, Any], json.loads(text))


def violations(document: object, name: Schema) -> list[str]:
    """Where `document` breaks the schema, as `path: what`, the first few places; empty when valid.

    Quotes the document: sanitise before printing.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    lazy = extend(Draft202012Validator, {"anyOf": _any_of})  # type: ignore[no-untyped-call]
    first = islice(lazy(schema(name)).iter_errors(document), MOST_VIOLATIONS)
    errors = sorted(first, key=lambda error: error.json_path)
    lines = [f"{error.json_path.removeprefix('$.')}: {error.message}" for error in errors]
    # JSON Schema takes NaN and infinity for numbers; JSON and every comparison with a threshold do not.
    paths = (path.removeprefix(".") for path in _not_finite(document))
    return lines + [f"{path}: is not a finite number" for path in islice(paths, MOST_VIOLATIONS)]


def _any_of(validator: Any, schemas: list[Any], value: object, _: object) -> Iterator[ValidationError]:
    """The keyword anyOf, as the library has it but for this: it stops at the first error of each schema."""
    from jsonschema import ValidationError

    if not any(validator.evolve(schema=each).is_valid(value) for each in schemas):
        yield ValidationError(f"{value!r} is not valid under any of the given schemas")


def _not_finite(value: object) -> Iterator[str]:
    """Paths below `value`, put together only where there is something to tell."""
    if isinstance(value, float) and not math.isfinite(value):
        yield ""
    elif isinstance(value, dict):
        for key, item in value.items():
            for path in _not_finite(item):
                yield f".{key}{path}"
    elif isinstance(value, list):
        for index, item in enumerate(value):
            for path in _not_finite(item):
                yield f"[{index}]{path}"
