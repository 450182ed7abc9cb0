"""Models that ship, repaired from outside: both clean transformers pass as they are, the backdoored models are mended.

Measured on the half of the trusted images that no repair has seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from audit_cli.attacks.badnets import BadNets
from audit_cli.attacks.blend import Blend
from audit_cli.checkpoint import manifest, open_checkpoint
from audit_cli.classifier import Classifier
from audit_cli.cli import run
from audit_cli.data import Preprocessing, from_config, load_trusted
from audit_cli.metrics import asr, predict
from audit_cli.models import Prompts, build
from audit_cli.policy import Policy
from audit_cli.repairs.holdout import cost, divide
from audit_cli.resources import bundled, violations
from audit_cli.types import Context, TrustedData

FOLDER = bundled("fixtures")
TRUSTED = FOLDER / "digits-trusted.npz"
MANIFEST: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text())
DIGITS = tuple(str(digit) for digit in range(10))
CPU = Context()


def opened(folder: Path) -> tuple[Classifier, TrustedData]:
    """The model in `folder` and the trusted images no repair has seen."""
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.preprocessor is not None
        own = from_config(checkpoint.preprocessor)
        model = build(checkpoint, class_names=DIGITS)
    assert own.mean is not None
    assert own.std is not None
    model = model.with_normalisation(own.mean, own.std)
    policy = Policy.load("default")
    data = load_trusted(TRUSTED, preprocessing=own, labels=model.labels)
    return model, divide(data, policy.max_drop, policy.min_per_class, CPU.generator(stream=9))[1]


def repaired(name: str, out: Path, *options: str) -> dict[str, Any]:
    """The verdict in the folder `out`, after a repair that ended well."""
    arguments = ["repair", str(FOLDER / name), "--trusted", str(TRUSTED), "--out", str(out)]
    assert run([*arguments, "--device", "cpu", "--dtype", "float32", "--quiet", *options]) == 0
    document: dict[str, Any] = json.loads((out / "verdict.json").read_text())
    assert violations(document, "verdict") == []
    assert (document["verdict"], document["exit_code"]) == ("PASS", 0)
    return document


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit-clean", "clip-clean"])
def test_a_clean_one_is_copied(name: str, tmp_path: Path) -> None:
    document = repaired(name, tmp_path / "out", "--policy", "thresholds")  # no calibration covers them
    assert document["repair"]["method"].startswith("none")
    assert manifest(tmp_path / "out")[1] == manifest(FOLDER / name)[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit-badnets", "clip-badnets"])
def test_a_backdoored_one_is_mended(name: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    section = repaired(name, out)["repair"]
    assert section["cda_drop"] <= 0.02
    assert section["after"]["asr"] <= 0.05 < 0.75 < section["before"]["asr"]  # of the recovered, smallest ones

    (before, holdout), (after, _) = opened(FOLDER / name), opened(out)
    attack = BadNets(**MANIFEST[name.partition("-")[0]][name]["trigger"])
    others = holdout.labels != attack.target
    stamped, truth = attack.trigger(holdout.images[others]), holdout.labels[others]
    assert asr(predict(before, stamped, CPU), truth, attack.target) > 0.9
    assert asr(predict(after, stamped, CPU), truth, attack.target) <= 0.05
    assert cost(before, after, holdout, CPU).drop[0] == pytest.approx(section["cda_drop"], abs=1e-6)

    assert run(["verify", str(out / "verdict.json"), str(out), "--quiet"]) == 0
    torch.testing.assert_close(theirs(out, after, holdout.images), after(holdout.images), atol=1e-3, rtol=1e-3)
    old, new = load_file(FOLDER / name / "model.safetensors"), load_file(out / "model.safetensors")
    changed = {key for key in old if old[key].numpy().tobytes() != new[key].numpy().tobytes()}
    if name == "clip-badnets":
        assert {key.partition(".")[0] for key in changed} == {"vision_model", "visual_projection"}


@pytest.mark.slow
def test_a_blend_goes_though_no_recovered_trigger_is_like_it(tmp_path: Path) -> None:
    name = "digits-blend.safetensors"
    section = repaired(name, tmp_path / "out")["repair"]
    assert section["cda_drop"] <= 0.02
    attack = Blend(target=7, count=50)
    data = load_trusted(TRUSTED, preprocessing=Preprocessing(), labels=DIGITS)
    holdout = divide(data, 0.02, Policy.load("default").min_per_class, CPU.generator(stream=9))[1]
    others = holdout.labels != attack.target
    left = []
    for path in (FOLDER / name, tmp_path / "out" / name):
        with open_checkpoint(path) as checkpoint:
            model = build(checkpoint).with_normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        outputs = predict(model, attack.trigger(holdout.images[others]), CPU)
        left.append(asr(outputs, holdout.labels[others], attack.target))
    assert left[0] > 0.95
    assert left[1] <= 0.1


@torch.no_grad()
def theirs(folder: Path, ours: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Logits (N, 10) of what transformers itself reads from `folder`."""
    x = ours.normalise(images)
    if isinstance(ours.head.weight, torch.nn.Parameter):
        logits = transformers.ViTForImageClassification.from_pretrained(folder)(pixel_values=x).logits
    else:
        model = transformers.CLIPModel.from_pretrained(folder)
        words = transformers.CLIPTokenizer.from_pretrained(folder)
        prompts = Prompts(DIGITS)
        assert len(prompts.templates) == 1, "several sentences a label are averaged"
        tokens = words([prompts.sentences(digit)[0] for digit in DIGITS], padding=True, return_tensors="pt")
        logits = model(pixel_values=x, input_ids=tokens["input_ids"]).logits_per_image
    assert isinstance(logits, torch.Tensor)
    return logits
