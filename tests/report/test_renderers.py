from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from audit_cli.errors import AuditError
from audit_cli.report import RENDERERS, html, markdown, text
from audit_cli.report.wording import headline
from audit_cli.resources import violations
from audit_cli.types import Finding, Verdict

from .verdicts import HOSTILE, make_verdict, size


@pytest.mark.parametrize("name", RENDERERS)
def test_hostile_names_are_harmless_everywhere(name: str, hostile: Verdict) -> None:
    output = RENDERERS[name](hostile)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]", output)
    assert not re.search(r"^\s*::", output, re.MULTILINE)
    assert "##[" not in output
    assert HOSTILE not in output


@pytest.mark.parametrize("name", ["html", "markdown", "junit"])
def test_no_hostile_tag_survives_where_tags_count(name: str, hostile: Verdict) -> None:
    assert not re.search(r"(?<!\\)<script", RENDERERS[name](hostile))


def test_hostile_names_survive_every_renderer_even_in_a_document_nobody_cleaned(hostile: Verdict) -> None:
    document = json.loads(json.dumps(hostile.document))
    document["findings"][0] |= {"target_name": HOSTILE, "message": HOSTILE, "family": HOSTILE}
    document |= {"reasons": [HOSTILE], "limitations": [HOSTILE]}
    verdict = Verdict("FAIL", 1, (), (), document)
    for render in RENDERERS.values():
        output = render(verdict)
        assert "\x1b" not in output
        assert "\u202e" not in output
        assert not re.search(r"^\s*::", output, re.MULTILINE)


@pytest.mark.parametrize("name", ["text", "markdown", "html"])
def test_p_values_have_a_column_where_there_are_any(name: str) -> None:
    assert "0.024" in RENDERERS[name](make_verdict([size(1, "bee", 1.3, "profile", p_value=0.024)]))
    assert "p-value" not in RENDERERS[name](make_verdict([size(0, "ant", 2.0)])).replace("\\", "")


@pytest.mark.parametrize("name", RENDERERS)
def test_renderers_tell_the_verdict(name: str, failing: Verdict, passing: Verdict) -> None:
    assert "FAIL" in RENDERERS[name](failing)
    assert "no backdoor found within scope" in RENDERERS[name](passing).replace("\\", "")
    assert not re.search(r"\bsafe\b", RENDERERS[name](passing))


class TestHeadline:
    def test_names_the_target(self, failing: Verdict) -> None:
        assert headline(failing.document) == "FAIL — backdoor likely: target class 2 ‘cat’"

    def test_counts_further_targets_most_suspicious_first(self) -> None:
        verdict = make_verdict([size(0, "ant", 2.0), size(1, "bee", 9.0), size(1, "bee", 3.0, "additive")])
        assert headline(verdict.document) == "FAIL — backdoor likely: target class 1 ‘bee’ and 1 more"

    def test_a_trigger_names_the_class_before_the_features_do(self) -> None:
        features = replace(size(1, "bee", 9.0, "features"), asr_before=None)
        verdict = make_verdict([features, size(2, "cat", 2.0)])
        assert headline(verdict.document) == "FAIL — backdoor likely: target class 2 ‘cat’ and 1 more"

    def test_beside_clean_models_the_oddest_class_is_named_whatever_its_score(self) -> None:
        wave = replace(size(1, "bee", 9.0, "wave"), p_value=0.02, nonconformity=5.7)
        noise = replace(size(2, "cat", 1.1, "profile_noise"), p_value=0.02, nonconformity=13.8, asr_before=None)
        verdict = make_verdict([wave, noise])
        assert headline(verdict.document) == "FAIL — backdoor likely: target class 2 ‘cat’ and 1 more"
        assert verdict.reasons[0].startswith("class 2 (cat): the smallest profile_noise")

    def test_a_threshold_names_the_class_before_a_p_value_does(self) -> None:
        noise = replace(size(1, "bee", 1.1, "profile_noise"), p_value=0.02, nonconformity=13.8)
        verdict = make_verdict([noise, size(2, "cat", 2.0)])
        assert headline(verdict.document) == "FAIL — backdoor likely: target class 2 ‘cat’ and 1 more"

    def test_a_failure_without_a_class_gives_its_reason(self) -> None:
        verdict = make_verdict([Finding("BD001", 5.0, "the whole model is odd", family="mask")])
        assert headline(verdict.document).startswith("FAIL — the whole model is odd (BD001")

    def test_a_name_that_is_the_number_is_not_repeated(self) -> None:
        assert headline(make_verdict([size(1, "1", 9.0)]).document) == "FAIL — backdoor likely: target class 1"

    def test_no_findings_are_inconclusive(self) -> None:
        assert headline(make_verdict([]).document) == "INCONCLUSIVE — this audit allows no judgement"

    def test_a_model_in_which_nothing_is_found_but_that_no_calibration_covers(self) -> None:
        ordinary, apart = size(0, "ant", 1.1), Finding("BD110", 1.0, "no calibration holds")
        document = make_verdict([ordinary, apart]).document
        assert headline(document) == "INCONCLUSIVE — nothing found, but no calibration to judge by"
        few = Finding("BD106", 60.0, "60 trusted images are missing")
        document = make_verdict([ordinary, apart, few]).document
        assert headline(document) == "INCONCLUSIVE — this audit allows no judgement"


GOLDEN = """\
FAIL — backdoor likely: target class 2 ‘cat’

• class 2 (cat): the smallest mask trigger is 6.3 times
  smaller than usual (BD001: score 6.3, threshold 1.5)
• class 2 (cat): the smallest additive trigger is 2.0 times
  smaller than usual (BD001: score 2, threshold 1.5)
• 60 trusted images are missing (BD106: score 60, threshold
  1)

class  family  score  limit  success
2 cat  mask     6.30   1.50     97 %
0 ant  mask     1.10   1.50     97 %

Notes
• trigger families not searched: frequency, light, warp,
  wave (BD112)

model        resnet20, model.safetensors, sha256
             aaaaaaaaaaaa
trusted      4 images, model accuracy 75 %, sha256
             dddddddddddd
searched     3 of 3 classes; trigger families: mask,
             additive
"""


class TestText:
    def test_a_pass_says_so_once(self, passing: Verdict) -> None:
        assert text.render(passing).count("no backdoor found within scope") == 1

    def test_golden_at_60_columns(self, failing: Verdict) -> None:
        assert text.render(failing, width=60).startswith(GOLDEN)

    @pytest.mark.parametrize("width", [40, 60, 80, 200])
    def test_keeps_to_the_width(self, width: int, failing: Verdict, hostile: Verdict) -> None:
        for verdict in (failing, hostile):
            assert max(map(len, text.render(verdict, width=width).splitlines())) <= width

    def test_what_convicts_beside_clean_models_shows_its_p_value(self) -> None:
        found = [size(1, "bee", 1.3, "profile", p_value=0.024), size(0, "ant", 1.1)]
        lines = text.render(make_verdict(found), width=60).splitlines()
        head = lines.index("class  family   score  limit      p  success")
        assert lines[head + 1] == "1 bee  profile   1.30      –  0.024     97 %"
        assert lines[head + 2] == "0 ant  mask      1.10   1.50      –     97 %"

    def test_of_a_class_that_does_not_convict_the_least_likely_of_a_clean_model_is_shown(self) -> None:
        found = [
            size(1, "bee", 1.1, "additive", p_value=0.9),
            size(1, "bee", 1.0, "profile", p_value=0.2),
            size(1, "bee", 1.2, "mask"),
            size(0, "ant", 1.1, "additive", p_value=0.07),
        ]
        shown = [
            line.split()[:3] for line in text.render(make_verdict(found)).splitlines() if line[:5] in ("1 bee", "0 ant")
        ]
        assert shown == [["0", "ant", "additive"], ["1", "bee", "profile"]]

    def test_of_a_class_that_convicts_its_trigger_is_shown_before_what_leaves_none(self) -> None:
        features = replace(size(1, "bee", 1.4, "features"), asr_before=None, p_value=0.02, nonconformity=9.0)
        wave = size(1, "bee", 1.7, "wave", p_value=0.02, nonconformity=7.0)
        for found, family in ([features, wave], "wave"), ([features, wave, size(1, "bee", 8.0)], "mask"):
            lines = text.render(make_verdict(found)).splitlines()
            assert [line.split()[2] for line in lines if line.startswith("1 bee")] == [family]

    def test_no_number_is_cut_in_a_narrow_window(self) -> None:
        found = [size(1, "bee", 1.3, "profile", p_value=0.024), size(0, "ant", 11.1)]
        narrow = [line.split() for line in text.render(make_verdict(found), width=40).splitlines()]
        assert ["1", "bee", "profile", "1.30", "0.024", "97", "%"] in narrow
        assert ["0", "ant", "mask", "11.10", "–", "97", "%"] in narrow

    def test_markup_is_text(self, hostile: Verdict) -> None:
        assert "[red]r[/red]" in text.render(hostile, width=400)

    def test_colour_only_on_request(self, failing: Verdict, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert "\x1b[" not in text.render(failing)
        assert text.render(failing, colour=True).startswith("\x1b[")

    def test_long_lists_are_cut(self) -> None:
        verdict = make_verdict([size(c, f"c{c}", 3.0 + c) for c in range(30)])
        assert "and 24 more, in the JSON verdict" in text.render(verdict)


class TestHtml:
    def test_is_self_contained(self, failing: Verdict) -> None:
        page = html.render(failing)
        assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
        assert not re.search(r"https?://|<script|<link|url\(", page)

    def test_tags_are_balanced(self, hostile: Verdict) -> None:
        page = html.render(hostile)
        for tag in ("html", "head", "body", "main", "section", "table", "ul", "dl", "li", "td", "tr"):
            assert len(re.findall(rf"<{tag}[ >]", page)) == page.count(f"</{tag}>")

    def test_embeds_png_evidence_of_its_own_folder_only(self, tmp_path: Path) -> None:
        png = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
        base = tmp_path / "out"
        base.mkdir()
        for path in (base / "good.png", tmp_path / "outside.png"):
            path.write_bytes(png)
        (base / "not.png").write_bytes(b"<svg onload=x>")
        (base / "link.png").symlink_to(tmp_path / "outside.png")
        for evidence, count in (
            ("good.png", 1),
            ("../outside.png", 0),
            (str(tmp_path / "outside.png"), 0),
            ("link.png", 0),
            ("not.png", 0),
            ("missing.png", 0),
            (".", 0),
        ):
            verdict = make_verdict([size(0, "ant", 3.0, evidence=evidence)])
            assert html.render(verdict, base).count("data:image/png;base64,") == count, evidence
            assert (html.PICTURED in html.render(verdict, base)) == bool(count), evidence
            assert "data:image" not in html.render(verdict)

    def test_pictures_every_trigger_that_convicts_and_one_of_each_other_class(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        found = [
            replace(size(1, "bee", 1.4, "features"), asr_before=None, p_value=0.02, nonconformity=9.0),
            size(1, "bee", 1.7, "wave", p_value=0.02, nonconformity=7.0, evidence="a.png"),
            size(1, "bee", 8.0, "mask", evidence="a.png"),
            size(0, "ant", 1.2, "mask", evidence="a.png"),
            size(0, "ant", 1.1, "additive", evidence="a.png"),
        ]
        page = html.render(make_verdict(found), tmp_path)
        captions = re.findall(r"<figcaption class=soft>([^<]*)", page)
        assert captions == ["class 1 ‘bee’, mask", "class 1 ‘bee’, wave", "class 0 ‘ant’, mask"]


class TestMarkdown:
    @pytest.mark.parametrize(
        "text",
        [
            "**b**",
            "`c`",
            "[a](http://b)",
            "<b>",
            "a|b",
            "https://x.y",
            "www.x.y",
            "@org/team",
            "$x$",
            "~~s~~",
            "![i](j)",
            "&lt;",
        ],
    )
    def test_escape_leaves_no_active_character(self, text: str) -> None:
        escaped = markdown.escape(text).replace("<!-- -->", "\0")
        assert not re.search(r"(?<!\\)[*`\[\]<>|$~&!]|(?<!\\)://|@\w|www\.", escaped)

    def test_tables_keep_their_columns(self, hostile: Verdict) -> None:
        rows = [line for line in markdown.render(hostile).splitlines() if line.startswith("| class")]
        header = next(line for line in rows if "score" in line)
        row = next(line for line in rows if "6.30" in line)
        assert len(re.findall(r"(?<!\\)\|", row)) == header.count("|")


class TestJson:
    def test_is_ascii_and_the_document(self, failing: Verdict) -> None:
        output = RENDERERS["json"](failing)
        assert output.isascii()
        assert json.loads(output) == failing.document

    def test_refuses_what_breaks_the_schema(self, failing: Verdict) -> None:
        document = dict(failing.document) | {"surprise": 1}
        with pytest.raises(AuditError, match="surprise"):
            RENDERERS["json"](Verdict("FAIL", 1, (), (), document))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_refuses_numbers_json_has_not(self, failing: Verdict, value: float) -> None:
        document = json.loads(json.dumps(failing.document))
        document["environment"]["stages"]["x"] = value
        with pytest.raises(AuditError, match=r"environment\.stages\.x"):
            RENDERERS["json"](Verdict("FAIL", 1, (), (), document))


class TestSarif:
    def test_has_what_the_format_demands(self, failing: Verdict) -> None:
        log = json.loads(RENDERERS["sarif"](failing))
        assert log["version"] == "2.1.0"
        (run,) = log["runs"]
        rules = run["tool"]["driver"]["rules"]
        assert len({rule["id"] for rule in rules}) == len(rules) >= 14
        assert [result["level"] for result in run["results"]] == ["error", "error", "note", "warning"]
        for result in run["results"]:
            assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
            assert result["message"]["text"]
            assert re.fullmatch("[0-9a-f]{16}", result["partialFingerprints"]["auditCliFinding/v1"])
            assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "model.safetensors"

    def test_a_pass_has_no_results(self, passing: Verdict) -> None:
        assert json.loads(RENDERERS["sarif"](passing))["runs"][0]["results"] == []

    @pytest.mark.parametrize("name", ["[fix here](https://evil.example)", "\\[fix](https://evil.example)"])
    def test_names_become_no_link(self, name: str) -> None:
        (result,) = json.loads(RENDERERS["sarif"](make_verdict([size(2, name, 6.3)])))["runs"][0]["results"]
        text = result["message"]["text"]
        assert re.sub(r"\\(.)", r"\1", text).startswith(f"class 2 ({name}): the smallest")
        assert not re.search(r"[\[\]]", re.sub(r"\\.", "", text))

    def test_file_names_become_no_other_uri(self, hostile: Verdict) -> None:
        for result in json.loads(RENDERERS["sarif"](hostile))["runs"][0]["results"]:
            uri = result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
            assert re.fullmatch(r"[A-Za-z0-9_.~/%-]+", uri)


class TestJunit:
    def test_counts_agree_with_the_cases(self, failing: Verdict) -> None:
        root = ET.fromstring(RENDERERS["junit"](failing))
        suite = root.find("testsuite")
        assert suite is not None
        assert len(suite.findall("testcase")) == int(suite.attrib["tests"]) == 6
        assert int(suite.attrib["failures"]) == 3  # the verdict and two trigger sizes
        assert int(suite.attrib["errors"]) == 1
        assert root.attrib["failures"] == "3"

    def test_inconclusive_is_an_error_even_without_findings(self) -> None:
        root = ET.fromstring(RENDERERS["junit"](make_verdict([])))
        assert root.attrib["errors"] == "1"

    def test_a_pass_has_no_failure(self, passing: Verdict) -> None:
        root = ET.fromstring(RENDERERS["junit"](passing))
        assert (root.attrib["failures"], root.attrib["errors"]) == ("0", "0")


REPAIR = {
    "method": "unlearning",
    "before": {"cda": 0.98, "asr": 0.97, "score": 3.0},
    "after": {"cda": 0.97, "asr": 0.02, "score": 1.1},
    "cda_drop": 0.01,
    "cda_drop_interval": [0.0, 0.02],
    "output": None,
}


@pytest.mark.parametrize("name", ["text", "markdown", "html"])
@pytest.mark.parametrize(
    ("own", "others", "told"),
    [
        (14, 46, "works again after 14 steps of training with it, towards other classes after 46 steps"),
        (80, None, "more than 80 steps"),
    ],
)
def test_renderers_tell_how_fast_the_trigger_is_learnt_again(
    name: str, own: int, others: int | None, told: str
) -> None:
    again = {"family": "mask", "target_class": 2, "own": own, "others": others, "tried": 80}
    verdict = make_verdict([size(2, "cat", 1.1)], repair={**REPAIR, "relearning": again})
    assert violations(verdict.document, "verdict") == []
    assert told in " ".join(RENDERERS[name](verdict).split())
    assert "works again" not in RENDERERS[name](make_verdict([size(2, "cat", 1.1)], repair=REPAIR))


@pytest.mark.parametrize("name", ["text", "markdown", "html"])
def test_renderers_tell_what_had_convicted(name: str) -> None:
    def guilty(target: int | None, label: str | None, family: str) -> dict[str, object]:
        facts = {"rule_id": "BD001", "target_class": target, "target_name": label, "family": family}
        return {**facts, "score": 3.0, "p_value": None}

    found = [guilty(2, "cat", "mask"), guilty(None, None, ""), guilty(2, "cat", "wave")]
    verdict = make_verdict([size(2, "cat", 1.1)], repair={**REPAIR, "convicted": found})
    assert violations(verdict.document, "verdict") == []
    shown = " ".join(RENDERERS[name](verdict).split())
    assert "Had convicted: class 2 ‘cat’ (mask, wave); the model as a whole (no family)." in shown
    verdict = make_verdict([], repair={**REPAIR, "convicted": [guilty(k, None, "mask") for k in range(5)]})
    assert "class 2 (mask) and 2 more." in " ".join(RENDERERS[name](verdict).split())
    assert "convicted" not in RENDERERS[name](make_verdict([size(2, "cat", 1.1)], repair=REPAIR))


@pytest.mark.parametrize("name", ["text", "markdown", "html"])
def test_renderers_tell_what_else_was_tried_and_why_it_was_refused(name: str) -> None:
    figures = {"cda_drop": 0.03, "asr": 0.02, "score": None}
    tried = [
        {"method": "gentle unlearning", **figures, "objections": ["accuracy dropped", "a trigger is left"]},
        {"method": "unlearning", **figures, "objections": []},
    ]
    verdict = make_verdict([size(2, "cat", 1.1)], repair={**REPAIR, "attempts": tried})
    assert violations(verdict.document, "verdict") == []
    shown = " ".join(RENDERERS[name](verdict).split())
    assert "Tried: gentle unlearning, refused: accuracy dropped; a trigger is left." in shown
    assert shown.count("Tried:") == 1, "the best is told of above"
