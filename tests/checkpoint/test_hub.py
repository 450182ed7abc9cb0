"""`hf:org/name@revision` against a hub on loopback: what is fetched, what is refused, and what is left on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import REPO, HubServer
from safetensors.torch import save

from audit_cli.checkpoint import locate, open_checkpoint
from audit_cli.checkpoint.hub import parse
from audit_cli.errors import AuditError, BudgetExceeded, CheckpointError, UsageError
from audit_cli.types import Context

MODEL = f"hf:{REPO}"
WEIGHTS = save({"fc.weight": torch.arange(512.0)})
FILES = {
    "config.json": b'{"model_type": "resnet"}',
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"\x80\x02.",
    "modeling.py": b"import os",
    "README.md": b"# A model",
    "onnx/model.onnx": b"\x08",
}


def fetched(tmp_path: Path) -> list[str]:
    """Files in the cache, whatever they are called: the snapshot's names and the blobs'."""
    cache = tmp_path / "cache"
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix not in (".lock", ".TAG"))


def refuse(error: type[AuditError], code: int, match: str, model: str = MODEL, **options: Any) -> str:
    with pytest.raises(error, match=match) as caught:
        locate(model, allow_download=options.pop("allow_download", True), **options)
    line = str(caught.value)
    assert caught.value.exit_code == code
    assert line.isprintable()
    return line


class TestNames:
    def test_parsed(self) -> None:
        assert parse("hf:org/name") == ("org/name", "main")
        assert parse("hf:Org-1/net_2.0@refs/pr/1") == ("Org-1/net_2.0", "refs/pr/1")

    @pytest.mark.parametrize(
        "name",
        [
            *("", "name", "a/b/c", "../b", "a/..", "a/b.", "a/.b", "/a/b", "a--b/c", "a\\b/c", "a/b%2f", "ä/b"),
            *("a/b@", "a/b@../x", "a/b@x//y", "a/b@x/../y", "a/b@x/", "a/b@-x", "a/b@x y", "a/b@x\n", "a/b@x@y"),
            *("a/b@.x", "a/b@x/.y", "a/" + "b" * 97, "a/b@" + "x" * 201),
        ],
    )
    def test_refused(self, name: str) -> None:
        with pytest.raises(UsageError, match="not a model on the hub"):
            parse(f"hf:{name}")

    def test_paths_are_left_alone(self, tmp_path: Path) -> None:
        found = locate(tmp_path, "w.safetensors")
        assert (found.path, found.weights, found.origin) == (tmp_path, "w.safetensors", None)


def test_fetches_what_is_audited_and_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.push(FILES)
    found = locate(MODEL, allow_download=True)
    assert found.origin is not None
    assert found.origin.record() == {"repo": REPO, "revision": "main", "commit": commit}
    assert sorted(path.name for path in found.path.iterdir()) == ["config.json", "model.safetensors"]
    assert not any(name in request for request in hub.requests for name in ("bin", ".py", "README", "onnx"))
    with open_checkpoint(found.path, weights=found.weights, origin=found.origin) as checkpoint:
        assert [file.path for file in checkpoint.files] == ["config.json", "model.safetensors"]
        assert checkpoint.unaudited == ("onnx/model.onnx", "pytorch_model.bin")
        assert torch.equal(checkpoint.load()["fc.weight"], torch.arange(512.0))


def test_both_configs_of_the_preprocessing_are_fetched(hub: HubServer) -> None:
    names = ["preprocessor_config.json", "processor_config.json"]
    hub.push(FILES | dict.fromkeys(names, b'{"image_processor": {"do_resize": false}}'))
    found = locate(MODEL, allow_download=True)
    with open_checkpoint(found.path, weights=found.weights) as checkpoint:
        assert [file.path for file in checkpoint.files] == ["config.json", "model.safetensors", *names]
        assert checkpoint.preprocessor == {"do_resize": False}


def test_nothing_is_told_about_the_user(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AI_AGENT", "x")
    hub.push(FILES)
    locate(MODEL, allow_download=True)
    assert all("/resolve/" in request or "/revision/" in request for request in hub.requests)
    for headers in hub.headers:
        assert "authorization" not in headers
        assert "torch" not in headers["user-agent"]
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.push(FILES | {"config.json": b"{}"})
    locate(MODEL, allow_download=True)
    assert hub.headers[-1]["authorization"] == "Bearer hf_secret"


def test_huggingface_hub_gets_its_settings_back(hub: HubServer) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import logging

    before = constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_DISABLE_XET, logging.get_verbosity()
    refuse(UsageError, 2, "no such repository")
    assert (constants.HF_HUB_DISABLE_TELEMETRY, constants.HF_HUB_DISABLE_XET, logging.get_verbosity()) == before


def test_shards(hub: HubServer) -> None:
    parts = {"a.safetensors": save({"x": torch.ones(2)}), "b.safetensors": save({"y": torch.ones(3)})}
    index = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    hub.push(parts | {"model.safetensors.index.json": json.dumps(index).encode()})
    found = locate(MODEL, allow_download=True)
    with open_checkpoint(found.path, weights=found.weights) as checkpoint:
        assert sorted(checkpoint.tensors) == ["x", "y"]
    del hub.commits[hub.refs["main"]]["b.safetensors"]
    hub.push(hub.commits[hub.refs["main"]])
    refuse(CheckpointError, 2, "has no `b.safetensors`; the repository is incomplete")
    index["weight_map"]["y"] = "../b.safetensors"  # type: ignore[index]
    hub.push(parts | {"model.safetensors.index.json": json.dumps(index).encode()})
    refuse(CheckpointError, 2, "not a bare .safetensors name")


class TestWithoutTheNetwork:
    def test_no_request_unless_allowed(self, hub: HubServer) -> None:
        commit = hub.push(FILES)
        for name in (MODEL, f"{MODEL}@{commit}"):
            refuse(UsageError, 2, "not in the local cache; pass --allow-download", name, allow_download=False)
        assert hub.requests == []

    @pytest.mark.parametrize("how", ["constant", "environment"])
    def test_offline_mode_wins(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        hub.push(FILES)
        if how == "constant":
            monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        else:
            monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        refuse(UsageError, 2, "not in the local cache; HF_HUB_OFFLINE forbids the download; unset it")
        assert hub.requests == []

    def test_the_cache_is_enough(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        commit = hub.push(FILES)
        first = locate(MODEL, allow_download=True)
        asked = len(hub.requests)
        for name in (MODEL, f"{MODEL}@{commit}"):
            again = locate(name)
            assert (again.path, again.weights) == (first.path, first.weights)
            assert again.origin is not None
            assert again.origin.commit == commit
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert locate(MODEL, allow_download=True).path == first.path
        assert len(hub.requests) == asked

    def test_other_files_in_the_cache_are_left_aside(self, hub: HubServer) -> None:
        hub.push(FILES)
        first = locate(MODEL, allow_download=True)
        (first.path / "pytorch_model.bin").write_bytes(b"\x80\x02.")
        found = locate(MODEL)
        with open_checkpoint(found.path, weights=found.weights) as checkpoint:
            assert checkpoint.unaudited == ("pytorch_model.bin",)
        (first.path / "other.safetensors").write_bytes(WEIGHTS)
        refuse(CheckpointError, 2, "several weights files", allow_download=False)

    def test_a_part_is_not_enough(self, hub: HubServer) -> None:
        hub.push(FILES)
        found = locate(MODEL, allow_download=True)
        (found.path / "model.safetensors").unlink()
        refuse(UsageError, 2, "only a part of it is in the local cache; pass --allow-down", allow_download=False)

    @pytest.mark.parametrize("note", [b"../../../etc", b"", b"\xff", b"a" * 41])
    def test_a_spoilt_note_of_a_revision(self, hub: HubServer, tmp_path: Path, note: bytes) -> None:
        hub.push(FILES)
        locate(MODEL, allow_download=True)
        (tmp_path / "cache" / "models--org--net" / "refs" / "main").write_bytes(note)
        refuse(UsageError, 2, "not in the local cache", allow_download=False)


class TestRevisions:
    def test_moved_while_downloading(self, hub: HubServer) -> None:
        new = hub.push({"model.safetensors": save({"fc.weight": torch.zeros(512)})})
        old = hub.push(FILES)
        hub.moving = new
        found = locate(MODEL, allow_download=True)
        assert hub.refs["main"] == new
        assert found.origin is not None
        assert found.origin.commit == old
        assert (found.path / "model.safetensors").read_bytes() == WEIGHTS
        assert all(old in request for request in hub.requests if "/resolve/" in request)

    def test_moved_between_two_runs(self, hub: HubServer) -> None:
        old = hub.push(FILES)
        first = locate(MODEL, allow_download=True)
        new = hub.push(FILES | {"model.safetensors": save({"fc.weight": torch.zeros(4)})})
        assert locate(MODEL).path == first.path
        second = locate(MODEL, allow_download=True)
        assert (first.path.name, second.path.name) == (old, new)
        assert (first.path / "model.safetensors").read_bytes() == WEIGHTS
        assert locate(MODEL).path == second.path
        assert locate(f"{MODEL}@{old}").path == first.path

    def test_the_hub_answers_with_another_commit(self, hub: HubServer) -> None:
        commit = hub.push(FILES)
        hub.sha = "0" * 40
        refuse(AuditError, 4, "the hub answers with commit 0000", f"{MODEL}@{commit}")
        hub.sha = "../../x"
        refuse(AuditError, 4, "the hub names no commit")


class TestWhatIsRefused:
    def test_only_pickles(self, hub: HubServer, tmp_path: Path) -> None:
        hub.push({name: data for name, data in FILES.items() if name != "model.safetensors"})
        line = refuse(CheckpointError, 2, "holds no .safetensors file, only onnx/model.onnx, pytorch_model.bin")
        assert "audit-cli convert" in line
        assert len(hub.requests) == 1
        assert fetched(tmp_path) == []

    def test_no_weights_at_all(self, hub: HubServer) -> None:
        hub.push({"config.json": b"{}"})
        refuse(CheckpointError, 2, "holds no .safetensors file; name a repository that does")

    def test_several_weights(self, hub: HubServer) -> None:
        hub.push(FILES | {"other.safetensors": WEIGHTS})
        refuse(CheckpointError, 2, "several weights files")
        found = locate(MODEL, "other.safetensors", allow_download=True)
        assert found.origin is not None
        assert "model.safetensors" in found.origin.unaudited
        refuse(UsageError, 2, "has no safetensors file `pytorch_model.bin`", weights="pytorch_model.bin")

    def test_a_rival_beside_the_index(self, hub: HubServer) -> None:
        index = json.dumps({"weight_map": {"x": "a.safetensors"}}).encode()
        hub.push({"a.safetensors": WEIGHTS, "model.safetensors": WEIGHTS, "model.safetensors.index.json": index})
        refuse(CheckpointError, 2, "several weights files")

    @pytest.mark.parametrize("name", ["../x.safetensors", "/etc/x.safetensors", "a\\b.safetensors", "d/x.safetensors"])
    def test_names_that_lead_elsewhere(self, hub: HubServer, tmp_path: Path, name: str) -> None:
        hub.push({"config.json": b"{}"})
        hub.listed = {name: {"rfilename": name, "size": 4, "blobId": "0" * 40}}
        refuse(CheckpointError, 2, "holds no .safetensors file")
        refuse(UsageError, 2, "has no safetensors file", weights=name)
        assert fetched(tmp_path) == []

    @pytest.mark.parametrize(
        ("name", "size", "match"),
        [
            ("model.safetensors", 10**12, "the model has 1000000000024 bytes, where at most"),
            ("config.json", 10**8, "config.json has 100000000 bytes, where at most 4194304 are accepted"),
            ("tokenizer.json", 10**8, "tokenizer.json has"),
        ],
    )
    def test_huge_files(self, hub: HubServer, tmp_path: Path, name: str, size: int, match: str) -> None:
        hub.push(FILES)
        hub.listed = {name: {"rfilename": name, "size": size, "blobId": "0" * 40}}
        refuse(CheckpointError, 2, match)
        assert fetched(tmp_path) == []
        assert len(hub.requests) == 1

    @pytest.mark.parametrize("size", [None, -1, "9"])
    def test_sizes_that_are_none(self, hub: HubServer, size: object) -> None:
        hub.push(FILES)
        hub.listed = {"config.json": {"rfilename": "config.json", "size": size}}
        refuse(AuditError, 4, "states no size for config.json")

    def test_no_room(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        hub.push(FILES)
        monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
        refuse(UsageError, 2, "set HF_HOME to a larger disk")

    def test_too_many_files(self, hub: HubServer) -> None:
        hub.push({str(number): b"" for number in range(10_001)})
        refuse(CheckpointError, 2, "more than 10000 files")


class TestBadTransfers:
    def test_cut_off(self, hub: HubServer, tmp_path: Path) -> None:
        hub.push(FILES)
        hub.cut = 0.5
        refuse(AuditError, 4, "the download failed")
        assert fetched(tmp_path) == []

    @pytest.mark.parametrize(
        ("body", "match"),
        [
            (b"", "the download failed"),
            (WEIGHTS[:-1], "the download failed"),
            (WEIGHTS + b"more", "the download failed"),
            (b"x" * 100_000, "model.safetensors: the download keeps breaking off or never ends"),
        ],
    )
    def test_another_length(self, hub: HubServer, tmp_path: Path, body: bytes, match: str) -> None:
        commit = hub.push(FILES)
        hub.bodies = {"model.safetensors": body}
        refuse(AuditError, 4, match)
        assert not (tmp_path / "cache" / "models--org--net" / "snapshots" / commit / "model.safetensors").exists()
        assert not any("incomplete" in name for name in fetched(tmp_path))
        refuse(UsageError, 2, "not in the local cache|only a part", f"{MODEL}@{commit}", allow_download=False)
        hub.bodies = {}
        assert (locate(MODEL, allow_download=True).path / "model.safetensors").read_bytes() == WEIGHTS

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_other_bytes_of_the_same_length(self, hub: HubServer, tmp_path: Path, name: str) -> None:
        hub.push(FILES)
        hub.bodies = {name: FILES[name][:-1] + b"\0"}
        refuse(AuditError, 4, f"{name} arrived other than the hub lists it; try again")
        assert name not in fetched(tmp_path)
        hub.bodies = {}
        assert (locate(MODEL, allow_download=True).path / name).read_bytes() == FILES[name]

    def test_no_digest_listed(self, hub: HubServer) -> None:
        hub.push(FILES)
        hub.listed = {"config.json": {"rfilename": "config.json", "size": len(FILES["config.json"])}}
        refuse(AuditError, 4, "config.json arrived other than the hub lists it")

    def test_spoilt_in_the_cache(self, hub: HubServer) -> None:
        hub.push(FILES)
        path = (locate(MODEL, allow_download=True).path / "model.safetensors").resolve()
        path.write_bytes(WEIGHTS[:-1] + b"\1")
        refuse(AuditError, 4, "in the local cache is not what the hub lists; remove it")
        assert path.exists()

    def test_the_budget_is_asked(self, hub: HubServer) -> None:
        class Spent:
            def check(self) -> None:
                raise BudgetExceeded("the time is up")

        hub.push(FILES)
        refuse(BudgetExceeded, 3, "the time is up", context=Context(budget=Spent()))


class TestAnswers:
    @pytest.mark.parametrize("status", [401, 403])
    def test_closed(self, hub: HubServer, status: int) -> None:
        hub.status = status
        refuse(UsageError, 2, "private or gated; accept its terms and set HF_TOKEN")

    def test_missing(self, hub: HubServer) -> None:
        hub.push(FILES)
        refuse(UsageError, 2, "no such repository or revision", f"{MODEL}@v2")
        refuse(UsageError, 2, "no such repository or revision", "hf:org/other")

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_failing(self, hub: HubServer, status: int) -> None:
        hub.status = status
        refuse(AuditError, 4, "the download failed")

    def test_nobody_there(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        refuse(AuditError, 4, r"hf:org/net@main: the download failed \(ConnectError")

    @pytest.mark.parametrize("answer", [[], None, {"siblings": [{}]}, {"sha": 3}, {"sha": "x", "siblings": 1}])
    def test_nonsense(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
        monkeypatch.setattr(HubServer, "listing", lambda self, revision: answer or [1])
        refuse(AuditError, 4, "hf:org/net@main")
