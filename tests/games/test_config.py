"""A bench file is checked whole before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from audit_cli.errors import UsageError
from audit_cli.games.config import Training, read_bench

BENCHES = Path(__file__).parents[2] / "fixtures" / "benches"


def test_a_bench(bench_file: Path) -> None:
    bench = read_bench(bench_file)
    assert (bench.name, bench.tier, bench.trusted, bench.measured) == ("tiny", "S", 60, 60)
    assert [network.base is not None for network in bench.networks] == [True, False]
    assert [network.seed for network in bench.networks] == [0, 1]
    clean, badnets = bench.populations
    assert (clean.attack, clean.counts, clean.victims) == ("clean", (0,), 2)
    assert (badnets.counts, badnets.settings) == ((20, 40), (("share", "0.25"),))
    assert (bench.detectors, bench.repairs, bench.repaired) == (("calibrated",), ("clean_retraining",), 1)


def test_epochs_become_steps() -> None:
    assert Training(epochs=1.5, batch=32).fit(64).steps == 3
    assert Training(epochs=0.001).fit(10).steps == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('tier = "S"', 'tier = "XL"', "tier `XL`: unknown; expected one of S, M, L"),
        ('tier = "S"', 'tear = "S"', "unknown key `tear`"),
        ("trusted = 60", 'trusted = "60"', "`trusted` must be a int"),
        ("epochs = 3", "epochs = 0", "must be positive"),
        ("epochs = 3", "", "epochs"),
        ('attack = "badnets"', 'attack = "badness"', "attack `badness`: unknown"),
        ("counts = [20, 40]", "counts = []", "counts whole numbers"),
        ("counts = [20, 40]", "counts = [1.5]", "counts whole numbers"),
        ("share = 0.25", "shape = 0.25", "no setting `shape`"),
        ("share = 0.25", "count = 3", "no setting `count`"),
        ('arch = "resnet8-w8-cifar"\n\n[[pop', 'arch = "vgg"\n\n[[pop', "vgg"),
        ("victims = 2\nsettings", "victims = 2\nnetworks = [2]\nsettings", "numbered 0 to 1"),
        ("victims = 2\nsettings", 'victims = 2\nloss = "hinge"\nsettings', "loss `hinge`: unknown"),
        ("base =", 'weights = "a"\nbase =', "need their `sha256`"),
        ("base =", 'weights = "a"\nsha256 = "0"\nbase =', "no `base`"),
        (
            'arch = "resnet8-w8-cifar"\n\n[[pop',
            'arch = "resnet8-w8-cifar"\nweights = "../a"\nsha256 = "0"\n\n[[pop',
            "no path",
        ),
        ('["calibrated"]', '["crystal"]', "detector `crystal`: unknown"),
        ('["clean_retraining"]', '["prayer"]', "repair `prayer`: unknown"),
        ("victims = 1", "victims = 1\nspeed = 1", "[robustness]: unknown key `speed`"),
        ("victims = 1", "victims = 1\nsettings = { nad = { speed = 1 } }", "no number `speed`"),
        ('attack = "clean"', 'attack = "clean"\ncounts = [3]', "neither settings nor counts"),
        ('attack = "clean"', 'attack = "clean"\ntuned = false', "with a `base` or `weights`"),
        ('attack = "clean"', 'attack = "clean"\nnetworks = [0]\ntuned = false', "2 victims, but 1 networks"),
        ("victims = 2\nsettings", "victims = 2\nnetworks = [0]\ntuned = false\nsettings", "is for clean models"),
        ("[training]", "[training", "cannot be read as TOML"),
        ("[[population]]", "[[populace]]", "at least one"),
    ],
)
def test_what_is_wrong_is_named(bench_file: Path, old: str, new: str, said: str) -> None:
    text = bench_file.read_text()
    assert old in text
    path = bench_file.with_name("b.toml")
    path.write_text(text.replace(old, new))
    with pytest.raises(UsageError) as error:
        read_bench(path)
    assert said in str(error.value)
    assert "b.toml" in str(error.value) or "vgg" in said


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml"):
        read_bench(tmp_path / "none.toml")


@pytest.mark.parametrize("path", sorted(BENCHES.glob("*.toml")), ids=lambda p: p.stem)
def test_the_benches_that_come_with_the_project(path: Path) -> None:
    assert read_bench(path).name == path.stem
