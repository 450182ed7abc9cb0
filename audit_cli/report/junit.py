"""The verdict as JUnit XML: one test case for the verdict and one per finding, for CI that shows test results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from audit_cli.report.sanitise import clean
from audit_cli.report.wording import contents, convicts, headline, target

if TYPE_CHECKING:
    from audit_cli.types import Verdict


def render(verdict: Verdict) -> str:
    """`fail` findings are failures, `inconclusive` ones errors, waived ones skipped; the rest are passed cases."""
    document = contents(verdict)
    suite = ET.Element("testsuite", name="audit-cli", timestamp=document["created_at"].removesuffix("Z"))
    case = ET.SubElement(suite, "testcase", classname="audit-cli", name="verdict", time=_seconds(document))
    if document["verdict"] != "PASS":
        outcome = ET.SubElement(case, "failure" if document["verdict"] == "FAIL" else "error", type=document["verdict"])
        outcome.set("message", headline(document))
        outcome.text = "\n".join(clean(reason, 500) for reason in document["reasons"])
    ET.SubElement(case, "system-out").text = "\n".join(
        [headline(document), *(f"limitation: {clean(line, 500)}" for line in document["limitations"])]
    )
    for finding in document["findings"]:
        _case(suite, finding)
    counts = {
        "tests": len(suite),
        "failures": len(suite.findall("*/failure")),
        "errors": len(suite.findall("*/error")),
        "skipped": len(suite.findall("*/skipped")),
    }
    root = ET.Element("testsuites")
    for element in (root, suite):
        element.attrib.update({key: str(value) for key, value in counts.items()}, time=_seconds(document))
    root.append(suite)
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _case(suite: ET.Element, finding: Mapping[str, Any]) -> None:
    family = f" ({clean(finding['family'], 40)})" if finding["family"] else ""
    name = (target(finding) or "model") + family
    case = ET.SubElement(suite, "testcase", classname=f"audit-cli.{clean(finding['rule_id'], 20)}", name=name, time="0")
    message = clean(finding["message"], 500)
    if not finding["fired"]:
        return
    if finding["waived_by"]:
        ET.SubElement(case, "skipped", message=clean(f"waived by {finding['waived_by']}: {message}", 800))
    elif convicts(finding):
        ET.SubElement(case, "failure", type="fail", message=message)
    elif finding["severity"] == "inconclusive":
        ET.SubElement(case, "error", type="inconclusive", message=message)
    else:
        ET.SubElement(case, "system-out").text = message


def _seconds(document: Mapping[str, Any]) -> str:
    return f"{document['environment']['seconds']:.3f}"
