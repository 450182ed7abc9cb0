"""The verdict as SARIF 2.1.0 (OASIS, 2020): for code-scanning views, which track findings by fingerprint."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from audit_cli.report.sanitise import clean
from audit_cli.report.wording import contents, headline, statement, target
from audit_cli.resources import RulePage, rule_pages

if TYPE_CHECKING:
    from audit_cli.types import Verdict

_LINK = re.compile(r"[\\\[\]]")  # `[text](target)` in a message is a link, but for backslashes (section 3.11.6)
LEVELS = {"fail": "error", "inconclusive": "warning", "note": "note"}


def render(verdict: Verdict) -> str:
    """One result per finding that fired; a waived one is suppressed. A result points at the first audited file."""
    document = contents(verdict)
    fired = [finding for finding in document["findings"] if finding["fired"]]
    pages = rule_pages()
    order = sorted({finding["rule_id"] for finding in fired} | set(pages))
    run = {
        "tool": {
            "driver": {
                "name": "audit-cli",
                "semanticVersion": document["tool"]["version"],
                "rules": [_rule(rule_id, pages.get(rule_id)) for rule_id in order],
            }
        },
        "automationDetails": {"id": f"audit-cli/{document['model']['manifest_digest']}"},
        "invocations": [
            {
                "executionSuccessful": True,
                "exitCode": document["exit_code"],
                "endTimeUtc": document["created_at"],
                "exitCodeDescription": headline(document),
            }
        ],
        "artifacts": [
            {
                "location": {"uri": _uri(file["path"])},
                "length": file["bytes"],
                "hashes": {"sha-256": file["sha256"]},
            }
            for file in document["model"]["files"]
        ],
        "results": [_result(finding, order, document) for finding in fired],
        "columnKind": "unicodeCodePoints",
        "properties": {
            "verdict": document["verdict"],
            "reasons": [clean(reason, 500) for reason in document["reasons"]],
            "limitations": [clean(line, 500) for line in document["limitations"]],
        },
    }
    log = {"$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, allow_nan=False) + "\n"


def _rule(rule_id: str, page: RulePage | None) -> dict[str, object]:
    if page is None:
        return {"id": clean(rule_id, 20)}
    return {
        "id": rule_id,
        "shortDescription": {"text": page.title},
        "fullDescription": {"text": page.summary},
        "help": {"text": page.text, "markdown": page.text},
        "properties": {"tags": ["security", "model"]},
    }


def _result(finding: Mapping[str, Any], order: list[str], document: Mapping[str, Any]) -> dict[str, object]:
    location: dict[str, object] = {
        "physicalLocation": {"artifactLocation": {"uri": _uri(document["model"]["files"][0]["path"]), "index": 0}}
    }
    if where := target(finding):
        location["logicalLocations"] = [{"name": where, "kind": "class"}]
    result: dict[str, object] = {
        "ruleId": clean(finding["rule_id"], 20),
        "ruleIndex": order.index(finding["rule_id"]),
        "level": LEVELS[finding["severity"]],
        "message": {"text": _LINK.sub(r"\\\g<0>", statement(finding) or clean(finding["rule_id"], 20))},
        "locations": [location],
        "partialFingerprints": {"auditCliFinding/v1": finding["fingerprint"]},
        "properties": {
            "score": finding["score"],
            "threshold": finding["threshold"],
            "family": clean(finding["family"], 40),
            "asr": finding["asr_before"],
        },
    }
    if finding["waived_by"]:
        waived_by = clean(finding["waived_by"], 400)
        result["suppressions"] = [{"kind": "external", "status": "accepted", "justification": waived_by}]
    return result


def _uri(path: str) -> str:
    """A relative URI reference: a name such as `javascript:…` or `//host/…` must not become anything else."""
    return quote(clean(path, 500).lstrip("/"))
