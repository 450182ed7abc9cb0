"""What the package ships and says of it, against the cells it was made from."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from audit_cli.calibration import fingerprints, read
from audit_cli.checkpoint import manifest
from audit_cli.conformal import families_of
from audit_cli.data import read_images
from audit_cli.detectors.calibrated import Calibrated
from audit_cli.detectors.profile import Profile
from audit_cli.resources import bundled, bundled_calibrations

FIXTURES = Path(__file__).parents[2] / "fixtures"
CALIBRATIONS = bundled("rules") / "calibrations"
SHIPPED = {"cifar10-resnet.json": "references-s", "cifar10-resnet-accurate.json": "references-m"}  # of which bench
DIGITS = "digits-resnet.json"
LATER = {"profile_patch", "profile_wave"}
LACKING = {  # families that its clean models have not been scored in
    "cifar10-resnet.json": set[str](),
    "cifar10-resnet-accurate.json": {"source_mask", *LATER},
    DIGITS: LATER,
}


def test_every_shipped_calibration_is_of_the_default_detector() -> None:
    """Otherwise no scan would ever use it."""
    assert {path.name for path in bundled_calibrations()} == {*SHIPPED, DIGITS}
    for path in bundled_calibrations():
        scoring = read(path).scoring
        assert scoring.items() <= fingerprints(Calibrated()).items(), path.name
        assert scoring.keys() == set(families_of(read(path).rows)), path.name
        assert scoring.keys() == fingerprints(Calibrated()).keys() - LACKING[path.name], path.name


def test_the_digits_are_scored_with_the_images_that_ship_and_without_the_models_that_do() -> None:
    calibration = read(CALIBRATIONS / DIGITS)
    assert calibration.resolves(0.05)
    assert calibration.trusted == read_images(FIXTURES / "digits-trusted.npz").digest
    assert calibration.images == 400
    own = {manifest(path)[1] for path in FIXTURES.glob("digits-*.safetensors")}
    assert len(own) == 5
    assert not own & {model.digest for model in calibration.models}


@pytest.mark.parametrize(("name", "bench"), SHIPPED.items())
def test_its_scores_are_those_of_the_benches_clean_models(
    name: str, bench: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FIXTURES / "scripts"))
    script = importlib.import_module("unseen_clean")
    cells = [cell for _, cell in script.clean_models(bench)]
    assert read(CALIBRATIONS / name).resolves(0.05), "enough for the default policy"
    for family in {"additive", "wave", *Profile().families} - LACKING[name]:
        shipped = sorted(tuple(model.scores[family]) for model in read(CALIBRATIONS / name).models)
        rows = [cell["scores"][f"BD001/{family}"] for cell in cells]
        assert shipped == sorted(tuple(row[str(c)][0] for c in range(10)) for row in rows), family


def test_the_false_alarms_told_are_those_of_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FIXTURES / "scripts"))
    script = importlib.import_module("unseen_clean")
    told = json.loads((FIXTURES / "results" / "unseen-clean.json").read_text())
    known = [c for _, c in script.clean_models("references-s")]
    assert told["further seeds and other trusted images"]["each"] == script.alarms(script.further(), known)
    second = told["each network left out in turn"]
    assert second["flagged"] == sum(model["p_value"] <= told["alpha"] for model in second["each"])
    assert second["models"] == len(known) == len(read(CALIBRATIONS / "cifar10-resnet.json").models)


def test_of_two_calibrations_the_one_as_accurate_decides() -> None:
    """Between the ranges of both lie models that both admit."""
    few, accurate = (read(CALIBRATIONS / name) for name in SHIPPED)
    assert few.domain == accurate.domain
    assert few.accuracy < accurate.accuracy
    assert few.refusal(0.84, 500) is None
    assert accurate.refusal(0.84, 500) is None
    assert accurate.refusal(0.93, 500) is None
    assert few.refusal(0.93, 500) is not None
    assert accurate.refusal(0.74, 500) is not None
    for accuracy, nearer in ((0.79, few), (0.82, few), (0.83, accurate), (0.86, accurate)):
        assert min((few, accurate), key=lambda calibration: calibration.away(accuracy)) == nearer


def test_how_sure_a_model_is_is_asked_of_accurate_networks_alone() -> None:
    """Many wrong labels, as of an all-to-all attack, make a network less sure; it must be compared all the same."""
    few, accurate = (read(CALIBRATIONS / name) for name in SHIPPED)
    assert few.refusal(0.74, 500, {}, -0.13) is None
    assert accurate.refusal(0.88, 500, {}, 0.0) is None
    assert accurate.refusal(0.88, 500, {}, -0.13) is not None
