"""`audit-cli verify`: may these bytes be deployed under that verdict? Hashes and compares; loads and runs nothing.

A verdict is not signed: keep it where whoever supplies the model cannot write.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from audit_cli.cli.console import say
from audit_cli.errors import UsageError
from audit_cli.report.sanitise import clean

VERDICT_CAP = 64_000_000  # bytes; a verdict of 1,000 classes and three families has about 2 MB
GOOD, BAD, DOUBTFUL = 0, 1, 3


def verify(
    verdict: Annotated[Path, typer.Argument(help="The JSON verdict that `scan` or `repair` wrote.")],
    model: Annotated[Path, typer.Argument(help="The checkpoint about to be deployed, as scan takes it.")],
    policy: Annotated[str | None, typer.Option(help="Demand that this policy was in force.")] = None,
    weights: Annotated[str | None, typer.Option(help="The audited file, where a folder has several formats.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> int:
    """Check a stored verdict against a model.

    Compares digests, schema, policy, result and expiry; one line per check on stderr.

    Exit codes: 0 all hold, 1 the files or the policy differ or the verdict is FAIL, 2 not a verdict, 3 the verdict is
    INCONCLUSIVE or has expired.
    """
    from audit_cli.checkpoint import locate, manifest
    from audit_cli.policy import Policy

    document = read_verdict(verdict)
    demanded = Policy.load(policy) if policy else None
    located = locate(model, weights or (demanded.weights if demanded else None))
    if demanded:
        demanded.refuse_inside(located.path)
    files, digest, unaudited = manifest(located.path, located.weights)
    found = {clean(file.path, 1000): file.sha256 for file in files}
    checks = [
        (GOOD, "schema: a valid verdict"),
        _files(document["model"], found, digest),
        _unaudited(document["model"], unaudited),
        *([_policy(document["policy"], demanded.sha256, demanded.name)] if demanded else []),
        _result(document),
        _expiry(document["expires_at"], datetime.datetime.now(datetime.UTC)),
    ]
    for code, line in checks:
        say(f"{ {GOOD: 'ok', BAD: 'FAIL', DOUBTFUL: 'inconclusive'}[code] }: {line}", quiet=quiet)
    codes = [code for code, _ in checks]
    return BAD if BAD in codes else max(codes)


def read_verdict(path: Path) -> dict[str, Any]:
    """The verdict stored at `path`. Raises UsageError unless it is strict JSON and valid against the schema."""
    from audit_cli.resources import violations

    name = clean(str(path))
    try:
        if path.stat().st_size > VERDICT_CAP:
            raise UsageError(f"{name} has more than {VERDICT_CAP} bytes; that is no verdict")
        document = json.loads(path.read_bytes(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except OSError as error:
        raise UsageError(f"cannot read verdict {name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {clean(str(error))}; pass the verdict.json that `scan` wrote") from error
    if problems := violations(document, "verdict"):
        raise UsageError(
            f"{name} is not a valid verdict: {clean(problems[0], 300)}; scan the model again with this version"
        )
    try:
        datetime.datetime.fromisoformat(document["expires_at"])
    except ValueError as error:
        raise UsageError(f"{name} is not a valid verdict: expires_at: {error}; scan the model again") from error
    return dict(document)


def _files(model: Mapping[str, Any], found: Mapping[str, str], digest: str) -> tuple[int, str]:
    audited = {file["path"]: file["sha256"] for file in model["files"]}
    for path in sorted(audited.keys() | found.keys()):
        if path not in found:
            return BAD, f"files: {path} was audited and is missing"
        if path not in audited:
            return BAD, f"files: {path} was not audited; scan the model again"
        if found[path] != audited[path]:
            return BAD, f"files: {path} is not the file that was audited; scan the model again"
    if digest != model["manifest_digest"]:
        return BAD, "files: the manifest digest differs; scan the model again"
    return GOOD, f"files: {len(found)} as audited, manifest {digest[:12]}"


def _unaudited(model: Mapping[str, Any], unaudited: tuple[str, ...]) -> tuple[int, str]:
    new = sorted({clean(path, 1000) for path in unaudited} - set(model["unaudited_files"]))
    if new:
        more = f" and {len(new) - 1} more" if len(new) > 1 else ""
        return BAD, f"other weights: {new[0]}{more} appeared after the audit; remove it"
    return GOOD, "other weights: none that the verdict does not list"


def _policy(recorded: Mapping[str, Any], sha256: str, name: str) -> tuple[int, str]:
    if recorded["sha256"] != sha256:
        return BAD, f"policy: the verdict was judged by another policy ({recorded['name']}); scan again with {name}"
    return GOOD, f"policy: {name}, {sha256[:12]}"


def _result(document: Mapping[str, Any]) -> tuple[int, str]:
    code = {"PASS": GOOD, "FAIL": BAD}.get(document["verdict"], DOUBTFUL)
    return code, f"verdict: {document['verdict']}, {document['reasons'][0]}"


def _expiry(expires_at: str, now: datetime.datetime) -> tuple[int, str]:
    if datetime.datetime.fromisoformat(expires_at) <= now:
        return DOUBTFUL, f"expiry: the verdict expired at {expires_at}; scan the model again"
    return GOOD, f"expiry: valid until {expires_at}"


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("an object repeats a key")
    return document
