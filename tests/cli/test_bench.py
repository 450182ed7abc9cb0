"""`audit-cli bench`: the games end to end on a tiny bench, stopped, killed and merged."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audit_cli.cli import run

BENCH = (Path(__file__).parents[1] / "games" / "conftest.py").read_text().split('"""')[3]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"classes": np.array(["ant", "bee", "cow"])}
    for split, count in (("train", 240), ("test", 150)):
        labels = np.arange(count) % 3
        levels = 0.2 + 0.3 * labels[:, None, None, None] + 0.1 * rng.random((count, 12, 12, 3))
        arrays |= {f"x_{split}": (levels * 255).astype(np.uint8), f"y_{split}": labels}
    np.savez(tmp_path / "data.npz", **arrays)
    (tmp_path / "tiny.toml").write_text(BENCH)
    return tmp_path


def words(here: Path, game: str, *more: str, results: str = "results", cache: str = "cache") -> list[str]:
    return [
        "bench", game, "--config", str(here / "tiny.toml"), "--data", str(here / "data.npz"), "--results",
        str(here / results), "--cache", str(here / cache), "--device", "cpu", "--dtype", "float32", "--quiet", *more,
    ]  # fmt: skip


def table(here: Path, capsys: pytest.CaptureFixture[str], results: str = "results") -> dict[str, Any]:
    capsys.readouterr()
    assert run(["bench", "table", str(here / results / "tiny"), "--json", "--rule", "all"]) == 0
    return without_times(json.loads(capsys.readouterr().out))


def without_times(tables: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [{k: v for k, v in row.items() if k != "cpu s"} for row in rows] if isinstance(rows, list) else rows
        for name, rows in tables.items()
    }


def test_the_games_and_their_tables(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words(here, "zoo")) == 0
    cells = sorted((here / "results" / "tiny" / "zoo").glob("*.json"))
    assert len(cells) == 6
    cell = json.loads(cells[0].read_text())
    assert (cell["tier"], cell["bench"]) == ("S", "tiny")
    assert {"command", "seconds", "torch", "device", "peak_memory_bytes"} <= cell["made"].keys()
    assert run(words(here, "robustness")) == 0
    cells = sorted((here / "results" / "tiny" / "robustness").glob("*.json"))
    assert [c.name.partition("-")[0] for c in cells] == ["badnets", "badnets", "clean"]
    cell = json.loads(cells[0].read_text())
    assert cell["repair"] == "clean_retraining"
    assert cell["curve"][0].keys() == {"step", "cda", "asr"}
    tables = table(here, capsys)
    assert tables["tier"] == "S"
    assert {(row["attack"], row["m"]) for row in tables["attacks"]} == {("clean", ""), ("badnets", 20), ("badnets", 40)}
    assert run(["bench", "table", str(here / "results" / "tiny")]) == 0
    text = capsys.readouterr().out
    assert text.startswith("### attacks (tier S)")
    assert "### robustness (tier S)" in text


def test_parts_from_two_machines_merge_to_the_whole(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words(here, "zoo")) == 0
    for part in ("1/2", "2/2"):
        assert run(words(here, "zoo", "--part", part, results=f"part{part[0]}", cache=f"cache{part[0]}")) == 0
    one, two = (here / f"part{k}" / "tiny" / "zoo" for k in (1, 2))
    assert len(list(one.glob("*.json"))) == len(list(two.glob("*.json"))) == 3
    shutil.copytree(one, here / "merged" / "tiny" / "zoo")
    shutil.copytree(two, here / "merged" / "tiny" / "zoo", dirs_exist_ok=True)
    assert table(here, capsys, "merged") == table(here, capsys)


def test_only_some_attacks(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words(here, "zoo", "--attack", "clean")) == 0
    assert [(row["attack"], row["victims"]) for row in table(here, capsys)["attacks"]] == [("clean", 2)]
    assert run(words(here, "zoo", "--attack", "refool")) == 2
    assert "no such population" in capsys.readouterr().err


def test_only_some_seeds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words(here, "zoo", "--seed", "1")) == 0
    assert {row["attack"]: row["victims"] for row in table(here, capsys)["attacks"]} == {"clean": 1, "badnets": 1}
    assert all("-s1-" in path.name for path in (here / "results" / "tiny" / "zoo").iterdir())
    assert run(words(here, "zoo", "--seed", "99")) == 2
    assert "--seed 99: the bench has no such victim; its seeds begin with 0" in capsys.readouterr().err


def test_a_time_budget_ends_with_3_and_the_next_run_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words(here, "zoo", "--time-budget", "0.05s")) == 3
    for _ in range(60):
        if (code := run(words(here, "zoo", "--time-budget", "3s"))) == 0:
            break
        assert code == 3
    assert code == 0
    assert run(words(here, "zoo", results="whole", cache="whole-cache")) == 0
    assert table(here, capsys) == table(here, capsys, "whole")


def test_killed_at_random_moments_the_table_is_the_same(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(int(os.environ.get("AUDIT_CLI_KILL_SEED", "0")))
    program = [sys.executable, "-m", "audit_cli", *words(here, "zoo")]
    threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums are rounded by how they are split
    for _ in range(3):
        process = subprocess.Popen(program, env=threads, stderr=subprocess.DEVNULL)
        time.sleep(3 + 5 * rng.random())  # the first seconds are imports
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert run(words(here, "zoo")) == 0
    assert run(words(here, "zoo", results="whole", cache="whole-cache")) == 0
    assert table(here, capsys) == table(here, capsys, "whole")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--part", "3/2"], "--part 3/2: expected NUMBER/OF"),
        (["--part", "one"], "--part one"),
        (["--time-budget", "soon"], "--time-budget soon"),
        (["--time-budget", "-1s"], "--time-budget -1s"),
        (["--config", "none.toml"], "none.toml"),
    ],
)
def test_usage(here: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str) -> None:
    assert run(words(here, "zoo", *more)) == 2
    assert said in capsys.readouterr().err
    assert not (here / "cache").exists()


def test_an_impossible_count_trains_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "tiny.toml").write_text(BENCH.replace("[20, 40]", "[20, 4000]"))
    assert run(words(here, "zoo")) == 2
    assert "poison count 4000" in capsys.readouterr().err
    assert not (here / "cache").exists()


def test_a_game_without_players(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "tiny.toml").write_text(BENCH.partition("[detectability]")[0])
    for game in ("detectability", "robustness"):
        assert run(words(here, game)) == 2
        assert f"[{game}] names no method" in capsys.readouterr().err
    (here / "tiny.toml").write_text(BENCH)
    assert run(words(here, "robustness", "--method", "nad")) == 2
    assert "names none of nad; it has clean_retraining" in capsys.readouterr().err


def test_tables_of_nothing_and_of_rubbish(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "table", str(here)]) == 2
    assert "no bench cells" in capsys.readouterr().err
    (here / "zoo").mkdir()
    (here / "zoo" / "x.json").write_text("{")
    assert run(["bench", "table", str(here)]) == 2
    assert "x.json" in capsys.readouterr().err


def played(here: Path, bench: str, scores: list[float], rule: str = "BD001/additive", **facts: object) -> Path:
    """A bench of clean models, each with a score of class 0, named after bench and number unless told otherwise."""
    folder = here / bench / "detectability"
    folder.mkdir(parents=True, exist_ok=True)
    for k, score in enumerate(scores):
        cell = {"tier": "S", "detector": "sizes", "attack": "clean", "poison_count": 0, "planted": False}
        cell |= {"victim": f"{bench}{k}", "arch": "a", "target": None, "asr": None, "cda": {"value": 0.8}}
        cell |= {"cpu_seconds": 1.0, "scores": {rule: {"0": [score, 1.0], "1": [1.0, 1.0]}}} | facts
        (folder / f"{cell['victim']}.{cell['detector']}.json").write_text(json.dumps(cell))
    return folder.parent


KNOWN = [1 + k / 100 for k in range(20)]


def test_a_bench_is_compared_with_another_ones_clean_models(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known, own = played(here, "known", KNOWN), played(here, "own", [1.05, 1.5])
    words = ["bench", "table", str(own), "--rule", "BD001 by class", "--json"]
    assert run([*words, "--against", str(known)]) == 0
    rows = json.loads(capsys.readouterr().out)["detectability, sizes, BD001 by class"]
    assert [(row["clean"], row["flagged"]) for row in rows] == [(2, 0.5)]
    assert run([*words[:2], str(known), *words[3:]]) == 0
    rows = json.loads(capsys.readouterr().out)["detectability, sizes, BD001 by class"]
    assert rows[0]["flagged"] is None, "among themselves one in twenty is flagged whatever they are like"
    assert run([*words, "--against", str(here / "nowhere")]) == 2
    assert "nowhere: holds no detectability cells of clean models" in capsys.readouterr().err


def test_the_clean_models_need_the_scores_not_the_detectors_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, own = played(here, "known", KNOWN, detector="compared"), played(here, "own", [1.05, 1.5])
    victim: dict[str, Any] = {"victim": "p", "attack": "badnets", "poison_count": 9, "planted": True, "target": 0}
    played(here, "own", [1.5], **victim, asr={"value": 0.9}, floor={"value": 0.1})
    words = ["bench", "table", str(own), "--rule", "all", "--json", "--against", str(known), "--against", str(known)]
    assert run(words) == 0
    tables = json.loads(capsys.readouterr().out)
    for name in ("BD001", "BD001 by class"):
        attack, _ = tables[f"detectability, sizes, {name}"]
        assert (attack["clean"], attack["auc"]) == (20, 1.0), "each once, though given twice"
    assert [row["flagged"] for row in tables["detectability, sizes, BD001 by class"]] == [1.0, 0.5]
    margins = played(here, "margins", [1.0], "BD004", detector="margin")
    for more in (["--rule", "all"], ["--rule", "BD004"], ["--ablation"]):
        assert run(["bench", "table", str(margins), "--against", str(known), *more]) == 2
        assert "known: holds no clean models with the scores of `margin`" in capsys.readouterr().err
    assert run(["bench", "table", str(margins), "--against", str(known)]) == 0, "no table is asked for"
    assert run(["bench", "table", str(own), "--against", str(margins), "--rule", "BD001 by class"]) == 2
    assert "margins: holds no clean models with the scores of `sizes`" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plots(here: Path, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
    pytest.importorskip("matplotlib")
    assert run(words(here, "zoo")) == 0
    folder = here / "results" / "tiny"
    out = here / f"plot.{suffix}"
    assert run(["bench", "table", str(folder), "--trade-off", str(out)]) == 2
    assert "no curve to draw" in capsys.readouterr().err
    assert run(["bench", "table", str(folder), "--by-count", str(out)]) == 0
    assert out.stat().st_size > 1000
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" if suffix == "png" else b"<svg" in out.read_bytes()
