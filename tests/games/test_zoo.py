"""The zoo: recipes, the cache, and what a victim is measured to be."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from audit_cli.attacks.victim import Rate
from audit_cli.errors import BudgetExceeded, UsageError
from audit_cli.games import zoo as module
from audit_cli.games.config import Bench
from audit_cli.games.data import Data, read_data
from audit_cli.games.recipes import Recipe, _identity, base_recipe, recipes
from audit_cli.games.zoo import Zoo, rehearse
from audit_cli.types import Context


def weights(zoo: Zoo, name: str) -> bytes:
    return (zoo.folder / f"{name}.safetensors").read_bytes()


def test_the_three_parts_are_disjoint_and_balanced(images: Data) -> None:
    assert images.trusted.per_class == (20, 20, 20)
    assert len(images.measured) == 60
    assert len(images.train) == 240
    both = torch.cat([images.trusted.images, images.measured.images]).flatten(1)
    assert len(both.unique(dim=0)) == len(both)


@pytest.mark.parametrize(("trusted", "said"), [(2, "0 of each"), (150, "at least one of each")])
def test_a_test_split_too_small_for_the_bench(data: Path, bench: Bench, trusted: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read_data(data, dataclasses.replace(bench, trusted=trusted))


def test_recipes_go_row_by_row(bench: Bench, images: Data) -> None:
    order = recipes(bench, images)
    assert [(r.attack, r.count, r.seed) for r in order] == [
        ("clean", 0, 0), ("badnets", 20, 0), ("badnets", 40, 0), ("clean", 0, 1), ("badnets", 20, 1), ("badnets", 40, 1)
    ]  # fmt: skip
    assert Counter(r.target for r in order) == {None: 2, 0: 2, 1: 2}
    assert [r.start is not None for r in order] == [True, True, True, False, False, False]
    assert len({r.digest for r in order}) == len(order)


def test_pattern_seeds_and_sources_vary_unless_set(bench: Bench, images: Data) -> None:
    def settings(attack: str, **fixed: str) -> list[dict[str, str]]:
        population = dataclasses.replace(
            bench.populations[1], attack=attack, counts=(9,), settings=tuple(fixed.items()), victims=3
        )
        return [dict(r.settings) for r in recipes(dataclasses.replace(bench, populations=(population,)), images)]

    assert [s["pattern_seed"] for s in settings("blend")] == ["0", "1", "2"]
    assert [s["pattern_seed"] for s in settings("blend", pattern_seed="7")] == ["7", "7", "7"]
    assert [s["source"] for s in settings("source_specific")] == ["1", "2", "0"]


def test_a_recipe_s_digest_depends_on_everything(bench: Bench, images: Data) -> None:
    recipe = recipes(bench, images)[1]
    training = dataclasses.replace(recipe.training, lr=0.05)
    others = [
        dataclasses.replace(recipe, **change)
        for change in ({"seed": 5}, {"count": 21}, {"target": 2}, {"training": training}, {"data": "x"}, {"loss": "l"})
    ]
    assert len({recipe.digest, *(other.digest for other in others)}) == 7


def test_a_victim_is_trained_once(bench: Bench, zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipes(bench, zoo.data)[2]
    first = zoo.victim(recipe)
    base = base_recipe(bench.networks[0], zoo.data)
    assert sorted(p.name for p in zoo.folder.glob("*.safetensors")) == sorted(
        f"{r.name}.safetensors" for r in (recipe, base)
    )
    assert weights(zoo, recipe.name) != weights(zoo, base.name)
    monkeypatch.setattr(module.Zoo, "_train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(module.Zoo, "_measure", lambda *_: pytest.fail("measured again"))
    second = zoo.victim(recipe)
    assert second.facts() == first.facts()
    assert torch.equal(second.classifier(zoo.data.measured.images), first.classifier(zoo.data.measured.images))
    assert not list(zoo.folder.glob("*.state"))


def test_networks_as_they_are_and_trained_on(bench: Bench, zoo: Zoo) -> None:
    tuned = dataclasses.replace(bench.populations[0], networks=(0,))
    own = dataclasses.replace(tuned, victims=1, tuned=False)
    as_it_is, later, _ = recipes(dataclasses.replace(bench, populations=(own, tuned)), zoo.data)
    assert as_it_is == base_recipe(bench.networks[0], zoo.data)
    assert (as_it_is.training, later.training) == (bench.networks[0].base, bench.training)
    victim, base = zoo.victim(as_it_is), zoo.base(bench.networks[0])
    pairs = zip(victim.classifier.module.parameters(), base.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not victim.planted
    assert zoo.victim(later).recipe.start == bench.networks[0]


@pytest.fixture
def published(bench: Bench, zoo: Zoo, tmp_path: Path) -> Bench:
    """The bench on one network whose weights somebody else trained; they lie in the zoo's folder."""
    theirs = dataclasses.replace(zoo, folder=tmp_path / "theirs").victim(recipes(bench, zoo.data)[0])
    zoo.folder.mkdir(parents=True, exist_ok=True)
    (zoo.folder / "theirs.safetensors").write_bytes(theirs.path.read_bytes())
    digest = hashlib.sha256(theirs.path.read_bytes()).hexdigest()
    network = dataclasses.replace(bench.networks[1], weights="theirs.safetensors", sha256=digest)
    return dataclasses.replace(bench, networks=(network,))


def test_a_victim_starts_from_somebody_else_s_weights(published: Bench, zoo: Zoo) -> None:
    clean, victim, _ = recipes(published, zoo.data)[:3]
    assert clean.start == victim.start == published.networks[0]
    base = zoo.base(published.networks[0])
    theirs = load_file(zoo.folder / "theirs.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in base.module.state_dict().items())
    still = dataclasses.replace(victim, training=dataclasses.replace(victim.training, epochs=0.001, lr=1e-9))
    trained = zoo.victim(still).classifier.module.state_dict()
    assert all(torch.allclose(trained[n], theirs[n], atol=1e-6) for n in theirs if n.endswith("conv1.weight"))


def test_somebody_else_s_network_as_it_is(published: Bench, zoo: Zoo) -> None:
    own = dataclasses.replace(published.populations[0], victims=1, tuned=False)
    tuned = dataclasses.replace(own, tuned=True)
    as_it_is, later = recipes(dataclasses.replace(published, populations=(own, tuned)), zoo.data)
    assert (as_it_is.start, later.start) == (None, published.networks[0])
    assert as_it_is.name != later.name
    theirs, ours = load_file(zoo.folder / "theirs.safetensors"), load_file(zoo.victim(as_it_is).path)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_digest_tells_somebody_else_s_weights_by_their_own(published: Bench, bench: Bench, images: Data) -> None:
    recipe = recipes(published, images)[1]
    renamed, other = (
        dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, **change))
        for change in ({"weights": "copy.safetensors"}, {"sha256": "0"})
    )
    assert renamed.digest == recipe.digest != other.digest
    assert "sha256" not in repr(_identity([("sha256", None), ("weights", None)]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sha256": "00"}, "SHA-256 is"),
        ({"weights": "gone"}, "no such file"),
        ({"arch": "resnet20-cifar"}, "where the"),
    ],
)
def test_other_weights_are_refused(published: Bench, zoo: Zoo, change: dict[str, str], said: str) -> None:
    network = dataclasses.replace(published.networks[0], **change)
    with pytest.raises(UsageError, match=said):
        zoo.base(network)


def test_two_zoos_train_the_same_weights(bench: Bench, zoo: Zoo) -> None:
    other = dataclasses.replace(zoo, folder=zoo.folder.with_name("other"))
    recipe = recipes(bench, zoo.data)[1]
    zoo.victim(recipe)
    torch.manual_seed(99)
    other.victim(recipe)
    assert weights(zoo, recipe.name) == weights(other, recipe.name)


class Ends:
    """A budget that ends after so many checks."""

    def __init__(self, checks: int) -> None:
        self.checks = checks

    def check(self) -> None:
        self.checks -= 1
        if self.checks < 0:
            raise BudgetExceeded("over")


@pytest.mark.parametrize("checks", [1, 6, 30])
def test_a_stopped_training_goes_on_to_the_same_weights(
    bench: Bench, zoo: Zoo, checks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY", 4)
    recipe = recipes(bench, zoo.data)[1]
    stopped = dataclasses.replace(zoo, context=Context(budget=Ends(checks)))
    with pytest.raises(BudgetExceeded):
        stopped.victim(recipe)
    assert not (zoo.folder / f"{recipe.name}.safetensors").exists()
    if checks > 5:
        assert list(zoo.folder.glob("*.state"))
    zoo.victim(recipe)
    whole = dataclasses.replace(zoo, folder=zoo.folder.with_name("whole"))
    whole.victim(recipe)
    assert weights(zoo, recipe.name) == weights(whole, recipe.name)


def test_planted_needs_more_than_chance_and_more_than_the_floor(bench: Bench, zoo: Zoo) -> None:
    victim = zoo.victim(recipes(bench, zoo.data)[1])

    def planted(asr: float, floor: float) -> bool:
        return dataclasses.replace(victim, asr=Rate.of(asr, 10_000), floor=Rate.of(floor, 10_000)).planted

    assert planted(0.9, 0.1)
    assert not planted(0.6, 0.1)  # three classes: twice what guessing gives is 0.67
    assert planted(0.9, 0.8)
    assert not planted(0.9, 0.9)
    assert not zoo.victim(recipes(bench, zoo.data)[0]).planted


@pytest.mark.parametrize(
    ("attack", "counts", "settings", "said"),
    [
        ("badnets", (161,), (), "poison count 161; between 1 and 160"),
        ("clean_badnets", (81,), (), "poison count 81; between 1 and 80"),
        ("badnets", (5,), (("share", "2"),), "share"),
        ("badnets", (-5,), (), "poison count -5"),
    ],
)
def test_the_impossible_is_refused_before_training(
    bench: Bench, zoo: Zoo, attack: str, counts: tuple[int, ...], settings: tuple[tuple[str, str], ...], said: str
) -> None:
    population = dataclasses.replace(bench.populations[1], attack=attack, counts=counts, settings=settings)
    wanted = recipes(dataclasses.replace(bench, populations=(bench.populations[0], population)), zoo.data)
    with pytest.raises(UsageError, match=said):
        rehearse(wanted, zoo)
    assert not zoo.folder.exists()


def test_a_row_is_rehearsed_once_and_not_when_it_has_a_victim(
    bench: Bench, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed: list[Recipe] = []
    monkeypatch.setattr(Zoo, "images", lambda self, recipe: rehearsed.append(recipe) or zoo.data.train)
    population = dataclasses.replace(bench.populations[1], attack="blend", counts=(10, 20), settings=(), victims=3)
    wanted = recipes(dataclasses.replace(bench, populations=(population,)), zoo.data)
    assert len({recipe.settings for recipe in wanted}) > 1, "each has a pattern of its own"
    rehearse(wanted, zoo)
    assert [recipe.count for recipe in rehearsed] == [10, 20]
    monkeypatch.setattr(Zoo, "has", lambda self, recipe: recipe == wanted[-1])
    rehearse(wanted, zoo)
    assert [recipe.count for recipe in rehearsed] == [10, 20, 10]


def test_a_surrogate_is_another_base(bench: Bench, images: Data) -> None:
    second = dataclasses.replace(bench.networks[0], seed=9)
    population = dataclasses.replace(bench.populations[1], attack="adversarial", counts=(10,), settings=())
    wanted = recipes(
        dataclasses.replace(bench, networks=(bench.networks[0], second), populations=(population,)), images
    )
    for recipe in wanted:
        assert recipe.surrogate is not None
        assert recipe.surrogate != recipe.start
