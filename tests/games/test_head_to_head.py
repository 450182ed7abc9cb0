"""fixtures/scripts/head_to_head.py: the glue around somebody else's Neural Cleanse, without it, and the tables."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from toys import Planted

from audit_cli.errors import UsageError
from audit_cli.games.config import read_bench
from audit_cli.games.data import read_data
from audit_cli.games.recipes import recipes
from audit_cli.games.zoo import Zoo
from audit_cli.types import Context

FIXTURES = Path(__file__).parents[2] / "fixtures"
TOY = Planted(classes=4, target=2)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(FIXTURES / "scripts")
    monkeypatch.delitem(sys.modules, "head_to_head", raising=False)
    monkeypatch.delitem(sys.modules, "public_cleanse", raising=False)
    yield importlib.import_module("head_to_head")
    torch.set_num_threads(threads)


@pytest.fixture
def cleanse(script: ModuleType) -> ModuleType:
    return sys.modules["public_cleanse"]


class Defence:
    """Stands in for the package's class: the mask of class c has c + 1 pixels; that of the target the planted block."""

    made: ClassVar[list[Defence]] = []

    def __init__(self, attack: Any, model: Any, original: bool, defense_remask_epoch: int = 10) -> None:
        assert original
        self.attack, self.model, self.asked = attack, model, list[int]()
        self.defense_remask_epoch, self.defense_remask_lr, self.cost, self.cost_multiplier_up = (
            defense_remask_epoch, 0.1, 1e-3, 1.5,
        )  # fmt: skip
        self.nc_patience, self.nc_asr_threshold, self.nc_early_stop_threshold = 10.0, 0.99, 0.99
        self.seen = torch.zeros(0)
        self.made.append(self)

    def optimize_mark(self, label: int, loader: Any, verbose: bool) -> tuple[Tensor, float]:
        sys.stdout.write("the package talks")
        assert not verbose
        self.asked.append(label)
        self.seen = torch.cat([x for x, _ in loader])
        mark = self.attack.mark.mark.clone().requires_grad_()
        with torch.no_grad():
            mark[:-1] = 1.0
            mark[-1].flatten()[: label + 1] = 1.0
            if label == TOY.target:
                mark[-1] = TOY.block
        return mark, 0.0


@pytest.fixture
def package(cleanse: ModuleType, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = SimpleNamespace(
        environ=SimpleNamespace(create=lambda device, seed: torch.manual_seed(seed)),
        attack=lambda mark, model, train_mode: SimpleNamespace(mark=mark, model=model),
        defence=Defence,
        mark=lambda data_shape: SimpleNamespace(data_shape=data_shape),
        model=lambda model, num_classes: model,
        normalised=lambda norms: (norms - norms.median()).abs(),
    )
    monkeypatch.setattr(Defence, "made", [])
    monkeypatch.setattr(cleanse, "package", lambda: fake)
    return fake


def test_what_the_package_is_given_and_what_comes_back(
    cleanse: ModuleType, package: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    data = TOY.data()
    masks = cleanse.trojanzoo(TOY.classifier(), data, Context(seed=3))
    [defence] = Defence.made
    assert defence.asked == [0, 1, 2, 3], "one object for all classes"
    assert (defence.attack.mark.mark_height, defence.attack.mark.mark_width) == (10, 8)
    assert defence.attack.mark.mark.shape == (4, 10, 8)
    assert torch.equal(defence.seen.sort(0).values, data.images.sort(0).values), "every trusted image, once an epoch"
    assert masks.norms == [1, 2, 4, 4]
    assert masks.indices == [1, 0, 2, 2]
    assert masks.success == [0, 0, 1, 0], "the planted block, and a few pixels of one's own region"
    assert masks.settings["epochs"] == 10
    assert capsys.readouterr().out == ""


def test_epochs_and_seed_reach_the_package(cleanse: ModuleType, package: SimpleNamespace) -> None:
    data, orders = TOY.data(), []
    for seed in (0, 0, 1):
        masks = cleanse.trojanzoo(TOY.classifier(), data, Context(seed=seed), epochs=50)
        assert masks.settings["epochs"] == 50
        orders.append(Defence.made[-1].seen)
    assert [len(d.asked) for d in Defence.made] == [4, 4, 4]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_every_class_may_have_an_object_of_its_own(cleanse: ModuleType, package: SimpleNamespace) -> None:
    masks = cleanse.trojanzoo(TOY.classifier(), TOY.data(), Context(), fresh=True)
    assert [d.asked for d in Defence.made] == [[0], [1], [2], [3]]
    assert masks.settings["fresh"]


def test_only_small_masks_are_suspicious(cleanse: ModuleType) -> None:
    assert cleanse.signed([10.0, 2.0, 30.0, 9.0, 11.0], [0.0, 8.0, 20.0, 1.0, 1.0]) == [0.0, 8.0, -20.0, 1.0, -1.0]


def test_the_package_itself_finds_the_planted_class(cleanse: ModuleType) -> None:
    try:
        cleanse.package()
    except UsageError as error:
        pytest.skip(str(error))
    masks = cleanse.trojanzoo(TOY.classifier(), TOY.data(), Context(), epochs=50, fresh=True)
    assert min(range(4), key=masks.norms.__getitem__) == TOY.target
    assert masks.success[TOY.target] > 0.9


@pytest.fixture
def zoo(data: Path, bench_file: Path, tmp_path: Path) -> Zoo:
    return Zoo(tmp_path / "cache", read_data(data, read_bench(bench_file)), Context())


def test_only_trained_victims_that_were_asked_for(script: ModuleType, zoo: Zoo, bench_file: Path) -> None:
    wanted = recipes(read_bench(bench_file), zoo.data)
    zoo.folder.mkdir()
    for recipe in wanted[:5]:  # clean, badnets 20, 40; clean, badnets 20
        for end in ("safetensors", "json"):
            (zoo.folder / f"{recipe.name}.{end}").touch()
    (zoo.folder / f"{wanted[5].name}.safetensors").touch()  # trained, not measured
    assert script.cached(zoo, wanted, ["badnets"], None) == [wanted[1], wanted[2], wanted[4]]
    assert script.cached(zoo, wanted, ["clean", "badnets-m40"], 1) == [wanted[0], wanted[2]]
    with pytest.raises(UsageError, match="no victim `blend`"):
        script.cached(zoo, wanted, ["clean", "blend"], None)


def arguments(data: Path, bench_file: Path, tmp_path: Path, *more: str) -> list[str]:
    return [
        "play", "clean", "badnets-m40", "--data", str(data), "--config", str(bench_file), "--most", "1",
        "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"), "--methods", *more,
    ]  # fmt: skip


def test_a_missing_package_is_told_before_anything_is_played(
    script: ModuleType, data: Path, bench_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "trojanvision", None)
    assert script.main(arguments(data, bench_file, tmp_path, "neural_cleanse", "trojanzoo")) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: trojanzoo cannot be imported (")
    assert "pip install trojanzoo" in line
    assert not (tmp_path / "out").exists()


def test_a_run_goes_on_where_it_stopped(
    script: ModuleType, cleanse: ModuleType, zoo: Zoo, data: Path, bench_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for recipe in recipes(read_bench(bench_file), zoo.data)[:3]:
        zoo.victim(recipe)
    seeds = []

    def search(suspect: Any, trusted: Any, context: Context) -> Any:
        seeds.append(context.seed)
        assert not any(p.requires_grad for p in suspect.parameters())
        assert len(trusted) == 60
        return cleanse.Masks([5.0, 1.0, 6.0], [0.0, 3.0, 1.0], [1.0, 0.5, 0.0], {"epochs": 10}, 2.0, 3.0)

    def method(zoo: Zoo, recipe: Any, name: str) -> Any:
        return script.public(zoo, recipe, name, search)

    monkeypatch.setitem(script.METHODS, "trojanzoo", replace(script.METHODS["trojanzoo"], cell=method, check=tuple))
    asked = arguments(data, bench_file, tmp_path, "trojanzoo", "neural_cleanse")
    assert script.main([*asked, "--minutes", "1e-9"]) == 3, "the time is up at once; the public search has no say in it"
    assert script.main(asked) == 0
    cells = {p.name: json.loads(p.read_text()) for p in (tmp_path / "out").iterdir()}
    assert len(cells) == 4
    assert seeds == [0, 0], "none was played twice"
    cell = next(c for name, c in cells.items() if name.startswith("badnets") and name.endswith(".trojanzoo.json"))
    assert cell["scores"] == {"NC/mask": {"0": [0.0, 5.0], "1": [3.0, 1.0], "2": [-1.0, 6.0]}}
    assert (cell["cpu_seconds"], cell["attack"], cell["poison_count"], cell["bench"]) == (2.0, "badnets", 40, "tiny")
    assert cell["made"]["threads"] == 1
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert script.main(asked) == 0
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    capsys.readouterr()
    assert script.main(["table", "--out", str(tmp_path / "out")]) == 0
    assert "| trojanzoo" in capsys.readouterr().out


def cell(method: str, victim: str, score: float, planted: bool = True) -> dict[str, Any]:
    attack = victim.partition("-")[0]
    rule = {"sizes": "BD001/mask", "neural_cleanse": "BD007/mask", "trojanzoo": "NC/mask"}[method]
    return {
        "victim": victim, "detector": method, "attack": attack, "poison_count": 0 if attack == "clean" else 9,
        "planted": planted and attack != "clean", "target": None if attack == "clean" else 1,
        "asr": {"value": 0.9}, "scores": {rule: {"0": [0.1, 1.0], "1": [score, 1.0]}}, "cpu_seconds": 4.0,
    }  # fmt: skip


CELLS = [
    *(cell("trojanzoo", f"clean-{i}", s) for i, s in enumerate((0.5, 1.0, 2.0, 2.5))),
    *(cell("trojanzoo", f"badnets-{i}", s) for i, s in enumerate((3.0, 2.2))),
    *(cell("trojanzoo", f"blend-{i}", s) for i, s in enumerate((0.2, 0.7))),
    cell("trojanzoo", "blend-unplanted", 9.0, planted=False),
    *(cell("sizes", f"clean-{i}", 1.0) for i in range(4)),
    *(cell("sizes", f"{attack}-{i}", 3.0) for attack in ("badnets", "blend") for i in range(2)),
    cell("sizes", "blend-unplanted", 9.0, planted=False),
    cell("sizes", "blend-2", 0.0),  # not played by the other
]


def test_every_method_is_measured_on_the_same_victims(script: ModuleType) -> None:
    rows = {(r["attack"], r["method"]): r for r in script.comparison(CELLS)}
    assert list(rows) == [(a, m) for a in ("(all)", "badnets", "blend") for m in ("sizes", "trojanzoo")]
    theirs = rows["(all)", "trojanzoo"]
    assert (theirs["clean"], theirs["planted"]) == (4, 4)
    assert theirs["auc"] == pytest.approx((4 + 3 + 0 + 1) / 16)
    assert theirs["low"] < theirs["auc"] < theirs["high"]
    assert (theirs["caught"], theirs["alarms"], theirs["cpu s"]) == (2, 2, 4.0), "at its own limit of 2"
    assert rows["badnets", "trojanzoo"]["auc"] == pytest.approx(7 / 8)
    assert rows["blend", "trojanzoo"]["caught"] == 0
    mine = rows["(all)", "sizes"]
    assert (mine["auc"], mine["caught"], mine["alarms"]) == (1.0, 4, 0), "3 is over the policy's 1.5, 1 is not"


def test_the_search_is_told_beside_clean_models_too(script: ModuleType) -> None:
    def scored(victim: str, score: float) -> dict[str, Any]:
        told = cell("sizes", victim, 0.9)
        rows = {family: {"0": [0.9, 1.0], "1": [score, 1.0]} for family in ("additive", "wave")}
        return told | {"scores": {f"BD001/{family}": row for family, row in rows.items()}}

    clean_models = [scored(f"clean-{i}", 0.8 + 0.01 * i) for i in range(40)]
    ours = [scored(f"clean-{100 + i}", 0.9 + 0.01 * i) for i in range(4)] + [scored("badnets-0", 1.3)]
    theirs = [cell("trojanzoo", c["victim"], 2.0) for c in ours]
    rows = {(r["attack"], r["method"]): r for r in script.comparison([*ours, *theirs], clean_models)}
    compared, alone = rows["(all)", "beside clean models"], rows["(all)", "sizes"]
    assert (compared["caught"], compared["alarms"], compared["auc"], compared["named"]) == (1, 0, 1.0, 1.0)
    assert (alone["caught"], alone["alarms"], alone["auc"]) == (0, 0, 1.0), "1.3 is under the threshold of 1.5"
    gains = script.differences([*ours, *theirs], clean_models, "beside clean models")
    assert [r["methods"] for r in gains] == ["beside clean models - sizes", "beside clean models - trojanzoo"]
    assert [r["auc"] for r in gains] == [0.0, 0.5]


def test_the_difference_is_taken_model_by_model(script: ModuleType) -> None:
    [row] = script.differences(CELLS)
    assert row["methods"] == "sizes - trojanzoo"
    assert row["auc"] == pytest.approx(0.5)
    assert row["low"] < 0.5 < row["high"]
    same = [c | {"detector": "neural_cleanse", "scores": {"BD007/mask": c["scores"]["NC/mask"]}} for c in CELLS[:9]]
    twice = CELLS[:9] + same + [c for c in CELLS if c["detector"] == "sizes"]
    gains = script.differences(list(reversed(twice)), reference="trojanzoo")
    equal = next(r for r in gains if r["methods"] == "trojanzoo - neural_cleanse")
    assert (equal["auc"], equal["low"], equal["high"]) == (0, 0, 0), "pairs stay together, whatever the order"
    assert script.differences(CELLS[:9]) == []


def test_an_empty_folder_has_no_table(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["table", "--out", str(tmp_path)]) == 2
    assert "run `play` first" in capsys.readouterr().err
