"""What the package ships and says of it, against the cells it was made from."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from audit_cli.calibration import fingerprint, read
from audit_cli.detectors.calibrated import Calibrated
from audit_cli.detectors.profile import Profile
from audit_cli.resources import bundled, bundled_calibrations

FIXTURES = Path(__file__).parents[2] / "fixtures"
CALIBRATION = bundled("rules") / "calibrations" / "cifar10-resnet.json"


def test_every_shipped_calibration_is_of_the_default_detector() -> None:
    """Otherwise no scan would ever use it."""
    assert CALIBRATION in bundled_calibrations()
    for path in bundled_calibrations():
        assert read(path).detector == fingerprint(Calibrated()), path.name


def test_its_scores_are_those_of_the_benches_clean_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FIXTURES))
    script = importlib.import_module("unseen_clean")
    cells = [cell for _, cell in script.clean_models("references-s")]
    for family in ("additive", "wave", *Profile().families):
        shipped = sorted(tuple(model.scores[family]) for model in read(CALIBRATION).models)
        rows = [cell["scores"][f"BD001/{family}"] for cell in cells]
        assert shipped == sorted(tuple(row[str(c)][0] for c in range(10)) for row in rows), family


def test_the_false_alarms_told_are_those_of_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FIXTURES))
    script = importlib.import_module("unseen_clean")
    told = json.loads((FIXTURES / "results" / "unseen-clean.json").read_text())
    known = [c for _, c in script.clean_models("references-s")]
    assert told["further seeds and other trusted images"]["each"] == script.alarms(script.further(), known)
    second = told["each network left out in turn"]
    assert second["flagged"] == sum(model["p_value"] <= told["alpha"] for model in second["each"])
    assert second["models"] == len(known) == len(read(CALIBRATION).models)
