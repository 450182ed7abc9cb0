"""Labels and templates: what is accepted, what is said of the rest, and the digest over all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit_cli.errors import UsageError
from audit_cli.models.prompts import BYTES_CAP, DEFAULT, LABEL_CAP, Prompts


def read(tmp_path: Path, data: bytes) -> tuple[str, ...]:
    (tmp_path / "labels.txt").write_bytes(data)
    return Prompts.read(tmp_path / "labels.txt").labels


@pytest.mark.parametrize(
    "data", [b"cat\nred fox\n", b"cat\nred fox", b"cat\r\nred fox\r\n", b"\xef\xbb\xbfcat\nred fox\n"]
)
def test_one_label_a_line(tmp_path: Path, data: bytes) -> None:
    assert read(tmp_path, data) == ("cat", "red fox")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"cat\n\ndog\n", "label 2: 0 characters"),
        (b"", "label 1: 0 characters"),
        (b"cat\ndog\ncat\n", "label 3 `cat`: is label 1 again"),
        (b"cat\nCAT\n", "is label 1 again"),  # the tokenizer knows no case
        (b"cat\n\x1b[31mdog\n", "not plain text"),
        ("cat\nd\u202eog\n".encode(), "not plain text"),
        ("cat\nd\u2028og\n".encode(), "not plain text"),
        (b"cat\n::error::dog\n", "not plain text"),
        (b"cat\n dog\n", "not plain text"),
        (b"cat\n<|EndOfText|>\n", "tokenizer's own"),
        (b"cat\n" + b"x" * 201, "201 characters"),
        (b"cat\n\xff\n", "not UTF-8"),
        (b"x" * (BYTES_CAP + 1), "more than"),
        (b"\n".join(b"%d" % n for n in range(10**6)), f"1000000 labels, where at most {LABEL_CAP}"),
    ],
)
def test_a_labels_file_that_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read(tmp_path, data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_labels_file_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(UsageError, match="cannot be read"):
            Prompts.read(path)


@pytest.mark.parametrize("template", ["a photo", "{} and {}", "{}" + "x" * 200, "{}\n", "<|startoftext|>{}", ""])
def test_templates_that_are_refused(template: str) -> None:
    with pytest.raises(UsageError):
        Prompts((), (template,))


def test_braces_of_other_kinds_are_text() -> None:
    """A template is filled in, not formatted: {0.__class__} reaches nothing."""
    assert Prompts((), ("{0.__class__} {}",)).sentences("cat") == ["{0.__class__} cat"]


def test_the_record_tells_order_and_content() -> None:
    base = Prompts(("cat", "dog"))
    assert base.templates == (DEFAULT,)
    assert base.record() == Prompts(("cat", "dog"), ("a photo of a {}.",)).record()
    assert base.record()["labels"] == 2
    digests = {
        str(prompts.record()["sha256"])
        for prompts in (base, Prompts(("dog", "cat")), Prompts(("cat", "dog"), ("a {}",)), Prompts(("cat dog",)))
    }
    assert len(digests) == 4
