"""Layers 1 and 3 for smooth light: what is added, and that the light a network obeys is found."""

from __future__ import annotations

import pytest
import torch
from toys import Linear

from audit_cli.attacks.refool import Refool
from audit_cli.classifier import Classifier
from audit_cli.inversion.engine import Search
from audit_cli.inversion.light import Light
from audit_cli.inversion.reflection import DARKEST
from audit_cli.types import Context, TrustedData

SIDE = 16


def test_adds_light_in_linear_intensity_whatever_its_sign() -> None:
    """With a grid as fine as the image nothing is interpolated."""
    family, images = Light(side=4), torch.rand(1, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    light = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.5
    wanted = (images.clamp_min(DARKEST) ** 2.2 + light.abs()).clamp(0, 1) ** (1 / 2.2)
    torch.testing.assert_close(family.stamp({"light": light}, images), wanted)
    assert float(family.size({"light": light})[0]) == pytest.approx(float(light.abs().mean()))


def test_expresses_the_attack() -> None:
    """A scene out of focus loses little on the grid."""
    attack, family = Refool(target=0, count=1), Light()
    images = torch.rand(1, 50, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    light = torch.nn.functional.interpolate(
        attack.ghost(images[0])[None], (family.side, family.side), mode="bilinear", align_corners=True
    )
    off = (family.stamp({"light": light}, images)[0] - attack.trigger(images[0])).abs().mean()
    change = (images[0] - attack.trigger(images[0])).abs().mean()
    assert float(off) < 0.1 * float(change)


def test_the_corner_whose_light_a_network_obeys_is_found() -> None:
    """Class 1 wins once the upper left quarter is bright enough; the other three quarters do nothing."""
    weight = torch.zeros(2, 3, SIDE, SIDE)
    weight[1, :, : SIDE // 2, : SIDE // 2] = 1.0 / (3 * (SIDE // 2) ** 2)
    suspect = Classifier(Linear(weight.flatten(1), torch.tensor([0.5, 0.0])), "fc", arch="linear").frozen()
    images = 0.2 * torch.rand(20, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    data = TrustedData(images, torch.zeros(20, dtype=torch.int64), ("dark", "bright"), "0" * 64, "toy")
    family, search = Light(side=8), Search(images=8)
    state = search.start(family, torch.tensor([1]), data.shape, Context())
    state = search.run(suspect, family, state, data, 120, Context())
    light = state.best["light"][0].abs().mean(0)
    assert bool(state.reached[0])
    assert float(light[:4, :4].mean()) > 10 * float(light[4:, 4:].mean())
    assert float(state.best_size[0]) < 0.15, "a quarter of the image at 0.6 of linear intensity, at most"


@pytest.mark.parametrize("wrong", [{"side": 0}, {"gamma": 0.0}, {"initial_size": 2.0}])
def test_nonsense_names_itself(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^Light\("):
        Light(**wrong)  # type: ignore[arg-type]
