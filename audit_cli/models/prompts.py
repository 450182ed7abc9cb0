"""Labels as prompts: what the classes of a zero-shot classifier are called, in sentences.

Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, 2021,
https://arxiv.org/abs/2103.00020 (section 3.1.4, prompt engineering and ensembling).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audit_cli.errors import UsageError
from audit_cli.report.sanitise import clean

DEFAULT = "a photo of a {}."  # section 3.1.4
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
BYTES_CAP = 8 * 2**20
LABEL_CAP = 65_536  # labels; ImageNet-21k has 21,841
TEMPLATE_CAP = 1_000  # templates; the published ensemble for ImageNet has 80
LENGTH_CAP = 200  # characters of a label or a template; the context of CLIP holds about as many


@dataclass(frozen=True)
class Prompts:
    """labels: class names in logit order; empty: those of the trusted images. templates: each with one {} for the name.

    Raises UsageError for a label that is empty, twice there, too long or not one line of plain text, for a template
    that does not hold exactly one {}, and for more of either than the caps allow.
    """

    labels: tuple[str, ...] = ()
    templates: tuple[str, ...] = (DEFAULT,)

    def __post_init__(self) -> None:
        if not 1 <= len(self.templates) <= TEMPLATE_CAP:
            raise UsageError(f"--prompt: {len(self.templates)} templates; expected 1 to {TEMPLATE_CAP}")
        for template in self.templates:
            if template.count("{}") != 1:
                raise UsageError(f"--prompt {clean(template, 80)}: expected exactly one {{}}, the place of the label")
            _plain(template, "--prompt")
        if len(self.labels) > LABEL_CAP:
            raise UsageError(f"{len(self.labels)} labels, where at most {LABEL_CAP} are accepted; give fewer --labels")
        first: dict[str, int] = {}
        for number, label in enumerate(self.labels, start=1):
            where = f"label {number}"
            _plain(label, where)
            if (before := first.setdefault(label.casefold(), number)) != number:
                raise UsageError(f"{where} `{clean(label, 60)}`: is label {before} again; make the --labels distinct")

    @classmethod
    def read(cls, labels: Path | None, templates: Sequence[str] = ()) -> Prompts:
        """labels: a UTF-8 file, one label a line, in logit order. templates: the default one when empty."""
        names = _lines(labels) if labels else ()
        return cls(names, tuple(templates) or (DEFAULT,))

    def named(self, class_names: Sequence[str]) -> Prompts:
        """These prompts, with `class_names` for labels where they have none; UsageError when nobody has."""
        if not (self.labels or class_names):
            raise UsageError("a CLIP model classifies by the names of its classes; give them with --labels FILE")
        named = self if self.labels else replace(self, labels=tuple(class_names))
        if len(named.labels) < 2:
            raise UsageError("a classifier needs two labels or more; give them with --labels FILE")
        return named

    def sentences(self, label: str) -> list[str]:
        """One per template."""
        return [template.replace("{}", label) for template in self.templates]

    def record(self) -> dict[str, object]:
        """For the verdict: how many labels, the first templates, and a digest over everything, in order."""
        everything = json.dumps([self.labels, self.templates], ensure_ascii=False)
        return {
            "labels": len(self.labels),
            "templates": list(self.templates[:10]),
            "sha256": hashlib.sha256(everything.encode()).hexdigest(),
        }


def _lines(path: Path) -> tuple[str, ...]:
    where = clean(str(path))
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_CAP + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"--labels {where}: cannot be read ({error.strerror}); give a text file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--labels {where}: is not UTF-8; save it as UTF-8 text") from error
    if len(data) > BYTES_CAP:
        raise UsageError(f"--labels {where}: more than {BYTES_CAP} bytes; give one label a line")
    return tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n"))


def _plain(text: str, where: str) -> None:
    if not text or len(text) > LENGTH_CAP:
        raise UsageError(f"{where}: {len(text)} characters; expected 1 to {LENGTH_CAP}")
    if clean(text, LENGTH_CAP) != text:
        raise UsageError(
            f"{where} `{clean(text, 60)}`: holds characters that are not plain text on one line; remove them"
        )
    if any(token in text.lower() for token in SPECIAL):
        raise UsageError(f"{where} `{clean(text, 60)}`: holds a token of the tokenizer's own; remove it")
