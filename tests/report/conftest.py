"""Verdicts to render: an ordinary failing one, and one whose every name is hostile."""

from __future__ import annotations

import pytest

from audit_cli.types import FileDigest, Finding, Verdict

from .verdicts import HOSTILE, make_verdict, size


@pytest.fixture
def passing() -> Verdict:
    return make_verdict([size(0, "ant", 1.1), size(1, "bee", 0.9)])


@pytest.fixture
def failing() -> Verdict:
    note = Finding("BD112", 1.0, "trigger families not searched: frequency, light, warp, wave")
    doubt = Finding("BD106", 60.0, "60 trusted images are missing")
    findings = [size(0, "ant", 1.1), size(2, "cat", 6.3), size(2, "cat", 2.0, "additive"), note, doubt]
    return make_verdict(findings)


@pytest.fixture
def hostile() -> Verdict:
    findings = [
        size(2, HOSTILE, 6.3, evidence="../" + HOSTILE, details={HOSTILE: HOSTILE}),
        Finding("BD110", 1.0, HOSTILE, detector=HOSTILE, family=HOSTILE, target_name=HOSTILE),
    ]
    return make_verdict(
        findings,
        arch=HOSTILE,
        files=(FileDigest(HOSTILE, "b" * 64, 1),),
        unaudited=(HOSTILE,),
        trigger_families=(HOSTILE,),
        limitations=(HOSTILE,),
    )
