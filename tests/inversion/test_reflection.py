"""Layers 1 and 3 for reflections: the light they add, and that one is found among photographs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from toys import Linear

from audit_cli.attacks.refool import Refool
from audit_cli.classifier import Classifier
from audit_cli.inversion.engine import Search
from audit_cli.inversion.listing import Listed, Listing
from audit_cli.inversion.reflection import DARKEST, Reflection
from audit_cli.types import Context, TrustedData

SIDE = 16


def photographs(count: int = 24) -> Tensor:
    """Each black but for a bright square of 4 x 4 pixels at a place of its own."""
    images = torch.full((count, 3, SIDE, SIDE), 0.0)
    for k in range(count):
        top, left = 2 * (k // 6), 2 * (k % 6)
        images[k, :, top : top + 4, left : left + 4] = 0.9
    return images


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0])
def test_adds_light_twice_in_linear_intensity(strength: float) -> None:
    family, scene = Reflection(shift=3 / SIDE), torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    images = torch.rand(1, 4, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    parameters = family.scaled(family.listed(scene), torch.tensor([strength]))
    stamped = family.stamp(parameters, images)[0]
    for i, j in ((0, 0), (2, 9), (7, 4), (15, 15)):
        copies = scene[0, :, i, j] ** 2.2 + scene[0, :, max(i - 3, 0), max(j - 3, 0)] ** 2.2
        light = images[0, :, :, i, j].clamp_min(DARKEST) ** 2.2 + strength * copies / 2
        torch.testing.assert_close(stamped[:, :, i, j], light.clamp(0, 1) ** (1 / 2.2), rtol=1e-4, atol=1e-4)
    assert family.size(parameters).tolist() == [strength]


def test_expresses_the_attack() -> None:
    """With the attacker's own light as the scene, the stamp is his."""
    attack, family = Refool(target=0, count=1), Reflection()
    images = torch.rand(1, 5, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    parameters = {"light": attack.ghost(images[0])[None], "strength": torch.tensor([attack.alpha])}
    torch.testing.assert_close(family.stamp(parameters, images)[0], attack.trigger(images[0]), rtol=1e-3, atol=2e-2)


def test_no_more_scenes_than_wanted() -> None:
    assert len(Reflection(scenes=7).listed(photographs())["light"]) == 7
    assert len(Reflection(scenes=99).listed(photographs())["strength"]) == 24


def test_the_scene_a_network_knows_is_found_and_its_strength() -> None:
    """Class 1 wins once the light of photograph 8 adds enough to a dark image; of the others none lights that place."""
    family, images = Reflection(), photographs()
    assert isinstance(family, Listed)
    light = family.ghost(images)
    weight = torch.zeros(2, 3 * SIDE * SIDE)
    weight[1] = (light[8] - light.mean(0)).flatten()
    faint = family.scaled(family.listed(images[8:9]), torch.tensor([0.4]))
    threshold = float((weight[1] * family.stamp(faint, images.new_zeros(1, 1, 3, SIDE, SIDE)).flatten()).sum())
    classifier = Classifier(Linear(50 * weight, torch.tensor([0.0, -50 * threshold])), "fc", arch="linear").frozen()
    labels = torch.arange(24) % 2
    dark = TrustedData(images * 0.01, labels, ("k0", "k1"), "0" * 64, "toy")

    class Lent(Reflection):
        def listed(self, _: Tensor) -> dict[str, Tensor]:
            return super().listed(images)

    state = Listing().run(classifier, Lent(), dark, Search(), Context(), torch.tensor([1]))
    assert float(state.best_size[0]) == pytest.approx(0.4, rel=0.12)
    torch.testing.assert_close(state.trigger(0, family).parameters["light"][0], light[8])


@pytest.mark.parametrize("wrong", [{"scenes": 0}, {"gamma": 0.0}, {"shift": 1.0}, {"initial_size": 9.0}])
def test_nonsense_names_itself(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"^Reflection\("):
        Reflection(**wrong)  # type: ignore[arg-type]
