from __future__ import annotations

import re
import unicodedata

import pytest

from audit_cli.report.sanitise import clean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("airplane", "airplane"),
        ("  two \t words\r\n", "two words"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]0;title\x07shown", "shown"),
        ("\x1b]8;;https://evil.example\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bPq#0;2\x1b\\sixel", "sixel"),
        ("\x1b(Bcharset", "charset"),
        ("\x1bcreset", "reset"),
        ("a\x1b", "a"),
        ("a\x00b\x7fc\x85d", "abc d"),
        ("user\u202egpj.exe", "usergpj.exe"),
        ("zero\u200bwidth\ufeff", "zerowidth"),
        ("line\u2028separator\u2029s", "line separator s"),
        ("::error file=x::boom", ": :error file=x: :boom"),
        ("\n ::error::boom", ": :error: :boom"),
        ("\u200b::error::boom", ": :error: :boom"),
        (":::", ": : :"),
        ("wrapped ::error::x", "wrapped : :error: :x"),
        ("x ##[error]y", "x # #[error]y"),
        ("##vso[task.complete]", "# #vso[task.complete]"),
        ("x ##teamcity[buildStop comment='y']", "x # #teamcity[buildStop comment='y']"),
        ("##VSO[task.complete] ##TeamCity[x]", "# #VSO[task.complete] # #TeamCity[x]"),
        ("## heading [x]", "## heading [x]"),
        ("[red]kept for the renderer[/red]", "[red]kept for the renderer[/red]"),
        ("日本 café ‘x’ – é", "日本 café ‘x’ – é"),
        ("", ""),
    ],
)
def test_one_printable_line(text: str, expected: str) -> None:
    assert clean(text) == expected


def test_long_text_ends_with_an_ellipsis() -> None:
    assert clean("x" * 300) == "x" * 199 + "…"
    assert clean("x" * 200) == "x" * 200
    assert len(clean("y" * 10_000_000, 50)) == 50


def test_every_character_is_harmless_or_gone() -> None:
    for start in range(0, 0x11000, 16):
        for character in clean("".join(map(chr, range(start, start + 16))), 1000):
            assert unicodedata.category(character)[0] != "C"
            assert character == " " or not character.isspace()


@pytest.mark.parametrize(
    "text",
    ["::::error::", "# #[x", "###[error]", ": ::error", "##\u200b[error]", "##\x1b[0m[error]", "##team\u200bcity[x"],
)
def test_cleaning_twice_changes_nothing_and_leaves_no_command(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert "::" not in once
    assert not re.search(r"##\w*\[", once)
