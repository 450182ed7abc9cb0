"""Opening files and folders: what is chosen, what is listed, what leads out of the folder."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from audit_cli.checkpoint import manifest, open_checkpoint
from audit_cli.checkpoint.save import save_weights
from audit_cli.errors import AuditError, BudgetExceeded, CheckpointError, UsageError

INDEX = "model.safetensors.index.json"


def opens(path: Path, weights: str | None = None) -> dict[str, Tensor]:
    with open_checkpoint(path, weights=weights) as checkpoint:
        return checkpoint.load()


def refused(path: Path, match: str, weights: str | None = None, error: type[AuditError] = CheckpointError) -> None:
    with pytest.raises(error, match=match) as caught:
        opens(path, weights)
    assert str(caught.value).isprintable()


def sharded(folder: Path, weight_map: dict[str, object] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_weights(folder / "a.safetensors", {"one": torch.ones(2)})
    save_weights(folder / "b.safetensors", {"two": torch.ones(3)})
    listed = {"one": "a.safetensors", "two": "b.safetensors"} if weight_map is None else weight_map
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": listed}))
    return folder


def test_single_file(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_weights(path, {"w": torch.arange(3.0), "n": torch.tensor(1)}, {"format": "pt"})
    (tmp_path / "other.bin").write_bytes(b"")  # the user named the file: what lies beside it is not looked at
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    with open_checkpoint(path) as checkpoint:
        (digest,) = checkpoint.files
        assert (digest.path, digest.sha256, digest.bytes) == ("net.safetensors", sha, path.stat().st_size)
        line = f"net.safetensors\t{sha}\t{path.stat().st_size}\n"
        assert checkpoint.manifest_digest == hashlib.sha256(line.encode()).hexdigest()
        assert (checkpoint.total_bytes, checkpoint.unaudited, checkpoint.metadata) == (20, (), {"format": "pt"})
        copy = checkpoint._copy
        assert stat.S_IMODE(copy.stat().st_mode) == 0o500
        assert stat.S_IMODE((copy / "net.safetensors").stat().st_mode) == 0o400
        path.write_bytes(b"swapped after the hash")
        assert torch.equal(checkpoint.load()["w"], torch.arange(3.0))
    assert not copy.exists()


def test_the_copy_is_removed_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = tmp_path / "tmp"
    room.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(room))
    (tmp_path / "m.safetensors").write_bytes(b"nonsense")
    refused(tmp_path / "m.safetensors", "malformed")
    assert not list(room.iterdir())


def test_the_budget_stops_the_copy(tmp_path: Path) -> None:
    def stop() -> None:
        raise BudgetExceeded("time is up")

    save_weights(tmp_path / "m.safetensors", {"w": torch.ones(2)})
    with pytest.raises(BudgetExceeded), open_checkpoint(tmp_path / "m.safetensors", check=stop):
        pass


def test_a_full_disk_is_said_before_copying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(tmp_path / "m.safetensors", {"w": torch.ones(2)})
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    refused(tmp_path / "m.safetensors", "set TMPDIR", error=UsageError)


def test_folder_with_configs(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    (tmp_path / "preprocessor_config.json").write_text('{"do_resize": true}')
    (tmp_path / "README.md").write_text("# A model")
    with open_checkpoint(tmp_path) as checkpoint:
        assert [file.path for file in checkpoint.files] == [
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
        ]
        assert checkpoint.config == {"model_type": "resnet"}
        assert checkpoint.preprocessor == {"do_resize": True}
    assert manifest(tmp_path)[1] == checkpoint.manifest_digest


@pytest.mark.parametrize(
    ("text", "value", "file"),
    [
        ('{"image_processor": {"do_resize": false}}', {"do_resize": False}, "processor_config.json"),
        ('{"image_processor": {}}', {}, "processor_config.json"),
        ('{"image_processor": null}', {"do_resize": True}, "preprocessor_config.json"),
        ('{"processor_class": "CLIPProcessor"}', {"do_resize": True}, "preprocessor_config.json"),
    ],
)
def test_the_processor_of_the_whole_model_comes_first(tmp_path: Path, text: str, value: object, file: str) -> None:
    """In transformers its `image_processor` wins, and the file is part of what was audited, whatever it says."""
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    (tmp_path / "processor_config.json").write_text(text)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.preprocessor == (value if file == "processor_config.json" else None)
    (tmp_path / "preprocessor_config.json").write_text('{"do_resize": true}')
    with open_checkpoint(tmp_path) as checkpoint:
        assert (checkpoint.preprocessor, checkpoint.preprocessor_file) == (value, file)
        assert "processor_config.json" in [digest.path for digest in checkpoint.files]


@pytest.mark.parametrize("text", ['{"image_processor": []}', '{"image_processor": "x"}', '{"image_processor": false}'])
def test_an_image_processor_that_is_no_object(tmp_path: Path, text: str) -> None:
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    (tmp_path / "processor_config.json").write_text(text)
    refused(tmp_path, r"^processor_config\.json: image_processor is not an object; save the processor again")


def test_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    assert opens(folder).keys() == {"one", "two"}
    assert [file.path for file in manifest(folder)[0]] == ["a.safetensors", "b.safetensors", INDEX]


@pytest.mark.parametrize(
    "name",
    [
        *["../out.safetensors", "/etc/out.safetensors", "sub/a.safetensors", "a\\b.safetensors", "a\0.safetensors"],
        *["..", "", "C:a.safetensors", "a.bin", "a\n.safetensors", 3, None, ["a.safetensors"]],
    ],
)
def test_shard_names_that_are_no_bare_names(tmp_path: Path, name: object) -> None:
    save_weights(tmp_path / "out.safetensors", {"one": torch.ones(2)})
    refused(sharded(tmp_path / "m", {"one": name, "two": "b.safetensors"}), r"index\.json: shard .* not a bare")


@pytest.mark.parametrize(
    "weight_map",
    [
        {"one": "a.safetensors", "zwei": "b.safetensors"},
        {"one": "a.safetensors", "two": "b.safetensors", "three": "b.safetensors"},
        {"one": "b.safetensors", "two": "a.safetensors"},
    ],
)
def test_index_and_shards_must_agree(tmp_path: Path, weight_map: dict[str, object]) -> None:
    folder = sharded(tmp_path / "m", weight_map)
    refused(folder, r"index\.json: puts `")


def test_a_tensor_in_two_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    save_weights(folder / "b.safetensors", {"one": torch.zeros(2), "two": torch.ones(3)})
    refused(folder, "`one` is in both a.safetensors and b.safetensors")


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}', '{"weight_map": 1, "weight_map": 2}']
)
def test_malformed_index(tmp_path: Path, text: str) -> None:
    folder = sharded(tmp_path / "m")
    (folder / INDEX).write_text(text)
    refused(folder, r"index\.json: (not|has no)")


def test_a_missing_shard(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / "b.safetensors").unlink()
    refused(folder, r"b\.safetensors: no such file")


def test_links_out_of_the_folder(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / "b.safetensors").rename(tmp_path / "b.safetensors")
    (folder / "b.safetensors").symlink_to(tmp_path / "b.safetensors")
    refused(folder, r"b\.safetensors: is a link that leads out")
    (folder / "b.safetensors").unlink()
    (tmp_path / "b.safetensors").rename(folder / "real.safetensors")
    (folder / "b.safetensors").symlink_to("real.safetensors")  # inside: fine, but then there are two names for it
    refused(folder, "several weights files")
    assert opens(folder, INDEX).keys() == {"one", "two"}
    (folder / "config.json").symlink_to("/etc/passwd")
    refused(folder, r"config\.json: is a link that leads out", weights=INDEX)


def test_the_cache_layout(tmp_path: Path) -> None:
    repo = tmp_path / "models--org--net"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    save_weights(repo / "blobs" / "0123", {"w": torch.ones(2)})
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert opens(snapshot).keys() == {"w"}
    with open_checkpoint(snapshot / "model.safetensors") as checkpoint:
        assert checkpoint.files[0].path == "model.safetensors"
    other = tmp_path / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (repo / "blobs" / "0123").rename(other / "0123")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../../models--org--other/blobs/0123")
    refused(snapshot, "leads out")


def test_things_that_are_no_files(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", "no such file")
    refused(Path("/dev/zero"), "not a regular file")
    os.mkfifo(tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "not a regular file")  # and does not wait for a writer
    refused(tmp_path, "not a regular file")


def test_an_empty_folder(tmp_path: Path) -> None:
    refused(tmp_path, "holds no .safetensors file; give the folder")


def test_a_folder_with_only_a_pickle(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, r"convert it first: audit-cli convert .*pytorch_model\.bin")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "x.PT", "a.ckpt", "tf_model.h5", "model.onnx", "training_args.bin"]
)
def test_both_formats_are_an_error_unless_the_file_is_named(tmp_path: Path, name: str) -> None:
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    (tmp_path / name).write_bytes(b"weights")
    refused(tmp_path, rf"both formats present \(model\.safetensors, {name}\); name the file with --weights")
    with open_checkpoint(tmp_path, weights="model.safetensors") as checkpoint:
        assert checkpoint.unaudited == (name,)


def test_a_pickle_under_an_innocent_name_is_noticed(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    torch.save({"a": torch.ones(1)}, tmp_path / "vocab.txt")
    refused(tmp_path, "both formats present")


def test_several_safetensors_files(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    save_weights(tmp_path / "ema.safetensors", {"w": torch.zeros(2)})
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"")
    refused(tmp_path, "several weights files")
    with open_checkpoint(tmp_path, weights="ema.safetensors") as checkpoint:
        assert checkpoint.unaudited == ("model.safetensors", "onnx/model.onnx")
        assert not checkpoint.load()["w"].any()


def test_a_link_to_a_folder_is_listed(tmp_path: Path) -> None:
    """Nothing looks inside, so nothing says that there are no weights."""
    folder, elsewhere = tmp_path / "m", tmp_path / "elsewhere"
    (folder / "onnx").mkdir(parents=True)
    elsewhere.mkdir()
    save_weights(folder / "model.safetensors", {"w": torch.ones(2)})
    save_weights(elsewhere / "other.safetensors", {"w": torch.zeros(2)})
    (folder / "sub").symlink_to("../elsewhere")
    (folder / "onnx" / "deeper").symlink_to(elsewhere)
    with open_checkpoint(folder) as checkpoint:
        assert checkpoint.unaudited == ("onnx/deeper", "sub")


def test_weights_must_be_a_bare_name(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    refused(tmp_path, "not a bare file name", weights="../model.safetensors")
    refused(tmp_path / "model.safetensors", "--weights does not apply", weights="x", error=UsageError)


@pytest.mark.parametrize(
    "text",
    [
        '{"auto_map": {"AutoModel": "evil.Model"}}',
        '{"vision_config": {"auto_map": {"AutoModel": "evil.Model"}}}',
        '{"list": [{"trust_remote_code": true}]}',
        '{"_attn_implementation": "org/kernel"}',
        '{"_attn_implementation_internal": "org/kernel"}',
        '{"attn_implementation": "x"}',
        '{"custom_pipelines": {"x": {"impl": "evil.Pipe"}}}',
        '{"quantization_config": {"quant_method": "x"}}',
    ],
)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "processor_config.json"])
def test_configs_that_ask_for_code(tmp_path: Path, name: str, text: str) -> None:
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    (tmp_path / name).write_text(text)
    refused(tmp_path, rf"{name}: `.*` (makes a loader run code|changes the weights).*; ")


@pytest.mark.parametrize(
    "text",
    [
        '{"transformers_weights": "sub/other.safetensors"}',
        '{"transformers_weights": null}',
        '{"configuration_files": ["config.4.0.0.json"]}',
        '{"configuration_files": []}',
        '{"attribute_map": {"num_attention_heads": "other"}, "other": 1, "num_attention_heads": 2}',
        '{"vision_config": {"transformers_weights": "other.safetensors"}}',
    ],
)
def test_configs_that_lead_elsewhere(tmp_path: Path, text: str) -> None:
    """`from_pretrained` would load those files, or read those keys; the audit is of the others."""
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, r"config\.json: `.*` leads a loader to other weights or settings .*; remove the key")


@pytest.mark.parametrize(
    "text",
    ["[]", "{", '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', '{"a": "\\ud800"}', '{"a":' * 50 + "1" + "}" * 50],
)
def test_configs_that_are_not_strict_json(tmp_path: Path, text: str) -> None:
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    (tmp_path / "config.json").write_text(text)
    refused(tmp_path, r"config\.json: not ")


def test_a_huge_config(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    (tmp_path / "config.json").write_bytes(b" " * 5_000_000)
    refused(tmp_path, r"config\.json: 5000000 bytes")


def test_harmless_values_of_dangerous_keys(tmp_path: Path) -> None:
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(2)})
    (tmp_path / "config.json").write_text('{"_attn_implementation_autoset": true, "quantization_config": null}')
    assert opens(tmp_path).keys() == {"w"}


def test_hostile_names_do_not_reach_the_message(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31m\n::error::.safetensors").write_bytes(b"x")
    refused(tmp_path, r"malformed|not a bare")
