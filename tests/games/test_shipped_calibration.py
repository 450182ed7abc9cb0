"""What the package ships and says of it, against the cells it was made from."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from audit_cli.calibration import fingerprint, read
from audit_cli.detectors.calibrated import Calibrated
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
    cells = [cell for name in ("cifar-s", "clean-s") for _, cell in script.clean_models(name)]
    shipped = sorted(tuple(model.scores["mask"]) for model in read(CALIBRATION).models)
    assert shipped == sorted(tuple(cell["scores"]["BD001/mask"][str(c)][0] for c in range(10)) for cell in cells)


def test_the_false_alarms_told_are_those_of_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FIXTURES))
    script = importlib.import_module("unseen_clean")
    told = json.loads((FIXTURES / "results" / "unseen-clean.json").read_text())
    known, unseen = script.clean_models("cifar-s"), script.clean_models("clean-s")
    flagged = script.summary(script.alarms([c for _, c in unseen], [c for _, c in known]))["flagged"]
    first = told["20 models of four networks"]
    assert flagged == first["further seeds on the same networks"]["flagged"] + first["other networks"]["flagged"]
    second = told["40 models of ten networks, each network left out in turn"]
    assert second["flagged"] == sum(model["p_value"] <= told["alpha"] for model in second["each"])
    assert second["models"] == len(known) + len(unseen) == len(read(CALIBRATION).models)
