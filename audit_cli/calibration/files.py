"""Calibrations as files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from audit_cli.calibration.domain import Domain
from audit_cli.calibration.models import Calibration, Clean
from audit_cli.calibration.scores import fingerprints
from audit_cli.checkpoint import strict_json
from audit_cli.errors import AuditError, PolicyError
from audit_cli.report.sanitise import clean
from audit_cli.resources import violations

SIZE_CAP = 4 * 2**20  # bytes of a calibration file


def candidates(files: Iterable[Path], domain: Domain, detectors: Iterable[object]) -> list[Calibration]:
    """The calibrations of `domain` in `files`, as far as one of `detectors` scores so. Several may be of one domain and
    of other accuracies."""
    known = [fingerprints(detector).items() for detector in detectors]
    there = (calibration for calibration in map(read, files) if calibration.domain == domain)
    parts = [
        calibration.only({family for family, _ in calibration.scoring.items() & marks})
        for calibration in there
        for marks in known
    ]
    return [part for part in parts if part.scoring]


def read(path: Path) -> Calibration:
    """The calibration in the JSON file at `path`. Raises PolicyError when it is none."""
    where = clean(str(path))
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PolicyError(f"calibration {where}: cannot be read ({error.strerror})") from error
    if len(content) > SIZE_CAP:
        raise PolicyError(f"calibration {where}: over {SIZE_CAP // 2**20} MiB; expected what `calibrate` writes")
    try:
        document: Any = strict_json.parse_object(content, where)
    except AuditError as error:
        raise PolicyError(f"calibration {where}: {error}") from error
    if wrong := violations(document, "calibration"):
        raise PolicyError(f"calibration {where}: {wrong[0]}")
    del document["schema_version"]
    domain = Domain(**document["domain"] | {"classes": tuple(document["domain"]["classes"])})
    models = tuple(_model(entry, domain, where) for entry in document.pop("models"))
    return Calibration(**document | {"domain": domain, "models": models})


def _model(entry: dict[str, Any], domain: Domain, where: str) -> Clean:
    scores = {family: tuple(values) for family, values in entry["scores"].items()}
    if any(len(values) != len(domain.classes) for values in scores.values()):
        raise PolicyError(f"calibration {where}: needs a score, or null, for each of {len(domain.classes)} classes")
    return Clean(**entry | {"scores": scores})
