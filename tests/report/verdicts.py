"""What the tests build verdicts from."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import torch

from audit_cli.judgement import judge
from audit_cli.policy import Policy
from audit_cli.report.document import build_document
from audit_cli.types import FileDigest, Finding, TrustedData, Verdict

MANIFEST = "a" * 64
CREATED = datetime.datetime(2026, 1, 31, 12, tzinfo=datetime.UTC)
ENVIRONMENT: dict[str, object] = {
    "torch": "2.11.0",
    "python": "3.11.9",
    "device": "cpu",
    "dtype": "float32",
    "seed": 7,
    "deterministic": True,
    "threads": 2,
    "seconds": 61.5,
    "peak_memory_bytes": None,
    "stages": {"invert mask": 40.25, "invert additive": 20.0},
}
HOSTILE = (
    "\x1b[31mred\x1b[0m\n::error::x\u202e [red]r[/red] <script>alert(1)</script> |`**b**` @user ##[error]y \x00\x85"
)


def trusted(labels: Sequence[int] = (0, 0, 1, 2)) -> TrustedData:
    images = torch.zeros(len(labels), 3, 4, 4)
    return TrustedData(images, torch.tensor(labels), ("ant", "bee", "cat"), digest="d" * 64)


def make_verdict(findings: Sequence[Finding], arch: str = "resnet20", **changes: object) -> Verdict:
    policy = Policy.load("default")
    judged = judge(findings, policy, MANIFEST, CREATED.date())
    settings: dict[str, object] = {
        "policy": policy,
        "arch": arch,
        "files": (FileDigest("model.safetensors", "b" * 64, 1_000),),
        "manifest_digest": MANIFEST,
        "unaudited": (),
        "trusted": trusted(),
        "accuracy": 0.75,
        "classes": 3,
        "searched": 3,
        "trigger_families": ("mask", "additive"),
        "environment": ENVIRONMENT,
        "created_at": CREATED,
        "limitations": ("triggers that work for one source class only are not searched",),
    }
    document = build_document(judged, **(settings | changes))  # type: ignore[arg-type]
    return Verdict(judged[0], judged[1], judged[2], judged[3], document)


def size(target: int, name: str, score: float, family: str = "mask", **fields: object) -> Finding:
    message = f"class {target} ({name}): the smallest {family} trigger is {score:.1f} times smaller than usual"
    return Finding("BD001", score, message, "calibrated", family, target, name, asr_before=0.97, **fields)  # type: ignore[arg-type]
