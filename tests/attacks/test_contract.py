"""What every attack promises, checked for each entry of the registry; an entry without a row fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from audit_cli.attacks import ATTACKS, Attack
from audit_cli.attacks.victim import construct, settings_of
from audit_cli.classifier import Classifier
from audit_cli.errors import UsageError
from audit_cli.models.create import create

K, PER_CLASS, SIDE, COUNT, TARGET, SOURCE = 4, 12, 32, 10, 1, 2


@dataclass(frozen=True)
class Row:
    """What the paper says of the attack. clean_label: no label changes. covers: how many of COUNT keep their label.
    differs: the trigger at test time is another than in training. adversarial: it needs a surrogate."""

    clean_label: bool = False
    covers: int = 0
    differs: bool = False
    adversarial: bool = False


ROWS = {
    "badnets": Row(),
    "clean_badnets": Row(clean_label=True),
    "adaptive_patch": Row(covers=5, differs=True),
    "adaptive_blend": Row(covers=5, differs=True),
    "blend": Row(),
    "sinusoid": Row(clean_label=True),
    "adversarial": Row(clean_label=True, adversarial=True),
    "refool": Row(clean_label=True),
    "wanet": Row(clean_label=True),
    "trigger_scattering": Row(differs=True),
    "parameter_controlled": Row(adversarial=True),
    "all_to_all": Row(),
    "source_specific": Row(covers=5),
}


def surrogate() -> Classifier:
    torch.manual_seed(0)
    return create("resnet8-w4-cifar", K)


def make(name: str, count: int = COUNT, **more: Any) -> Attack:
    settings = {"source": str(SOURCE)} if name == "source_specific" else {}
    clean = surrogate() if ROWS[name].adversarial else None
    target = None if name == "all_to_all" else TARGET
    return construct(name, count=count, classes=K, target=target, surrogate=clean, settings=settings, **more)


def data() -> tuple[Tensor, Tensor]:
    images = torch.rand(K * PER_CLASS, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(7))
    images[:, :, :8], images[:, :, 8:16] = 0, 1  # the ends of the range
    return images, torch.arange(K * PER_CLASS) % K


def seeded(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_attack_has_a_row() -> None:
    assert list(ROWS) == list(ATTACKS)


@pytest.mark.parametrize("name", ATTACKS)
def test_exactly_the_named_samples_are_poisoned(name: str) -> None:
    images, labels = data()
    poisoned = make(name).poison(images, labels, seeded())
    assert len(poisoned.index) == len(poisoned.index.unique()) == COUNT
    others = torch.ones(len(labels), dtype=torch.bool)
    others[poisoned.index] = False
    assert torch.equal(poisoned.images[others], images[others])
    assert torch.equal(poisoned.labels[others], labels[others])
    changed = (poisoned.images != images).flatten(1).any(1)
    assert bool(changed[poisoned.index].all())


@pytest.mark.parametrize("name", ATTACKS)
def test_labels(name: str) -> None:
    images, labels = data()
    attack = make(name)
    poisoned = attack.poison(images, labels, seeded())
    if ROWS[name].clean_label:
        assert torch.equal(poisoned.labels, labels)  # so every class keeps its count
        assert set(labels[poisoned.index].tolist()) == {TARGET}
        assert len(poisoned.covers) == 0
        return
    assert len(poisoned.covers) == ROWS[name].covers
    assert set(poisoned.covers.tolist()) <= set(poisoned.index.tolist())
    assert torch.equal(poisoned.labels[poisoned.covers], labels[poisoned.covers])
    payload = poisoned.index[~torch.isin(poisoned.index, poisoned.covers)]
    assert torch.equal(poisoned.labels[payload], attack.goals(labels[payload]))
    assert bool((poisoned.labels[payload] != labels[payload]).all())


@pytest.mark.parametrize("name", ATTACKS)
def test_images_stay_in_range_and_inputs_untouched(name: str) -> None:
    images, labels = data()
    before = images.clone(), labels.clone()
    attack = make(name)
    poisoned = attack.poison(images, labels, seeded())
    triggered = attack.trigger(images)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    for result in (poisoned.images, triggered):
        assert result.shape == images.shape
        assert result.dtype == torch.float32
        assert float(result.min()) >= 0
        assert float(result.max()) <= 1
        assert not result.requires_grad


@pytest.mark.parametrize("name", ATTACKS)
def test_deterministic_under_the_seed(name: str) -> None:
    images, labels = data()
    first, again = (make(name).poison(images, labels, seeded()) for _ in range(2))
    for field in ("images", "labels", "index", "covers"):
        assert torch.equal(getattr(first, field), getattr(again, field))
    other = make(name).poison(images, labels, seeded(6))
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("name", ATTACKS)
def test_trigger_of_an_image_does_not_depend_on_its_batch(name: str) -> None:
    images, _ = data()
    attack = make(name)
    whole = attack.trigger(images[:6])
    torch.testing.assert_close(torch.cat([attack.trigger(images[i : i + 1]) for i in range(6)]), whole)
    assert attack.trigger(images[:0]).shape == images[:0].shape


@pytest.mark.parametrize("name", ATTACKS)
def test_trigger_at_test_time(name: str) -> None:
    images, labels = data()
    attack = make(name)
    poisoned = attack.poison(images, labels, seeded())
    full = attack.trigger(images[poisoned.index])
    same = (poisoned.images[poisoned.index] == full).flatten(1).all(1)
    if ROWS[name].differs:
        assert not bool(same.all())
    else:
        torch.testing.assert_close(poisoned.images[poisoned.index], full)


@pytest.mark.parametrize("name", ATTACKS)
def test_goals_are_the_target_or_the_own_class(name: str) -> None:
    attack = make(name)
    goals = attack.goals(torch.arange(K)).tolist()
    expected = {
        "all_to_all": [1, 2, 3, 0],
        "source_specific": [TARGET if c == SOURCE else c for c in range(K)],
    }.get(name, [TARGET] * K)
    assert goals == expected
    assert attack.target == (None if name == "all_to_all" else TARGET)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("count", [0, -1, K * PER_CLASS + 1])
def test_impossible_counts(name: str, count: int) -> None:
    with pytest.raises(UsageError, match="eligible"):
        make(name, count=count).poison(*data(), seeded())


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "all_to_all"])
def test_target_without_images(name: str) -> None:
    images, labels = data()
    kept = labels != TARGET
    with pytest.raises(UsageError, match=f"no training image is of class {TARGET}"):
        make(name).poison(images[kept], labels[kept], seeded())


@pytest.mark.parametrize("name", ATTACKS)
def test_every_eligible_image_can_be_taken(name: str) -> None:
    images, labels = data()
    eligible = PER_CLASS if ROWS[name].clean_label or name == "source_specific" else (K - 1) * PER_CLASS
    eligible = K * PER_CLASS if name == "all_to_all" else eligible
    assert len(make(name, count=eligible).poison(images, labels, seeded()).index) == eligible


def test_construct_reads_settings_by_their_type() -> None:
    wanet: Any = construct(
        "wanet", count=5, classes=K, settings={"clean_label": "False", "strength": "0.5", "grid": "6"}
    )
    assert (wanet.clean_label, wanet.strength, wanet.grid, wanet.target) == (False, 0.5, 6, 0)
    assert [field.name for field in settings_of("wanet")] == ["strength", "grid", "clean_label", "flow_seed"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nope", {}, "unknown; expected one of badnets"),
        ("badnets", {"target": K}, "not among the 4 classes 0..3"),
        ("badnets", {"target": -1}, "not among the 4 classes"),
        ("badnets", {"settings": {"size": "3"}}, "no setting `size`; expected one of share, corner"),
        ("badnets", {"settings": {"count": "3"}}, "no setting `count`"),
        ("badnets", {"settings": {"share": "wide"}}, "share=wide: expected float"),
        ("badnets", {"settings": {"corner": "middle"}}, "corner top-left or bottom-right"),
        ("wanet", {"settings": {"clean_label": "perhaps"}}, "expected bool"),
        ("badnets", {"surrogate": True}, "does not use a surrogate"),
        ("adversarial", {}, "needs a surrogate"),
        ("all_to_all", {"target": 1}, "no single target"),
        ("source_specific", {}, "needs a value for `source`"),
        ("source_specific", {"settings": {"source": "0"}}, "a class other than the target"),
    ],
)
def test_construct_says_what_is_wrong(name: str, arguments: dict[str, Any], message: str) -> None:
    if "surrogate" in arguments:
        arguments = {"surrogate": surrogate()}
    with pytest.raises(UsageError, match=message):
        construct(name, **{"count": 5, "classes": K, **arguments})


SETTINGS = [
    (name, field.name, value)
    for name in ATTACKS
    for field in settings_of(name)
    for value in {"float": ["-1"], "int": ["-1"], "str": ["x"]}.get(str(field.type), [])
    if not field.name.endswith("_seed")
]


@pytest.mark.parametrize(("name", "key", "value"), SETTINGS)
def test_nonsense_is_rejected_by_the_attack_that_has_it(name: str, key: str, value: str) -> None:
    settings = {"source": str(SOURCE), key: value} if name == "source_specific" else {key: value}
    clean = surrogate() if ROWS[name].adversarial else None
    with pytest.raises(UsageError, match=name):
        construct(name, count=COUNT, classes=K, surrogate=clean, settings=settings)
