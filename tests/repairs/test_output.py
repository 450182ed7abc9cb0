"""The folder a repair leaves: whole or not at all, and a drop-in for the model it came from."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from audit_cli.checkpoint import open_checkpoint
from audit_cli.checkpoint.save import save_weights
from audit_cli.errors import AuditError, CheckpointError, UsageError
from audit_cli.models import build
from audit_cli.models.cifar_resnet import network
from audit_cli.repairs.output import carried, carry_over, check_destination, copy_model, model_card, staged, write_model

TINY = {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": 3, "layer_type": "basic"}


def sharded(folder: Path) -> Path:
    """A Hugging Face folder of two shards, half precision, with bystanders of every kind."""
    folder.mkdir()
    model = ResNetForImageClassification(ResNetConfig(**TINY)).half()
    state = model.state_dict()
    names = sorted(state)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in parts.items():
        save_weights(folder / file, {name: state[name] for name in part}, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(model.config.to_json_string())
    (folder / "preprocessor_config.json").write_text('{"size": 32}')
    (folder / "README.md").write_text("# Mine\n")
    (folder / "LICENSE").write_text("free")
    (folder / "vocab.txt").write_text("a\n")
    (folder / "evil.py").write_text("import os\n")
    (folder / ".hidden.json").write_text("{}")
    (folder / "verdict.json").write_text("{}")
    return folder


def test_a_sharded_half_precision_model_comes_back_as_it_was_but_for_the_weights(tmp_path: Path) -> None:
    source, out = sharded(tmp_path / "in"), tmp_path / "out"
    with open_checkpoint(source) as checkpoint, staged(out) as folder:
        repaired = build(checkpoint)
        with torch.no_grad():
            repaired.head.weight += 0.25
        write_model(checkpoint, repaired, folder)
        carry_over(checkpoint, folder)
        layout = {name: (info.file, info.dtype, info.shape) for name, info in checkpoint.tensors.items()}
        old = checkpoint.load()
    assert {p.name for p in out.iterdir()} == {p.name for p in source.iterdir()} - {
        "evil.py",
        ".hidden.json",
        "verdict.json",
    }
    for name in ("config.json", "preprocessor_config.json", "LICENSE", "vocab.txt", "model.safetensors.index.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    with open_checkpoint(out) as written:
        assert {name: (info.file, info.dtype, info.shape) for name, info in written.tensors.items()} == layout
        assert written.metadata == {"format": "pt"}
        new = written.load()
    changed = [name for name in old if not torch.equal(old[name], new[name])]
    assert changed == ["classifier.1.weight"]
    torch.testing.assert_close(new[changed[0]].float(), old[changed[0]].float() + 0.25, rtol=0, atol=1e-3)
    theirs = ResNetForImageClassification.from_pretrained(out, local_files_only=True)
    torch.testing.assert_close(theirs.classifier[1].weight.float(), new[changed[0]].float())


def test_an_unchanged_copy_has_the_same_bytes(tmp_path: Path) -> None:
    path, out = tmp_path / "m.safetensors", tmp_path / "out"
    save_weights(path, network(depth=8, classes=4).state_dict(), {"format": "pt"})
    with open_checkpoint(path) as checkpoint, staged(out) as folder:
        copy_model(checkpoint, folder)
        carry_over(checkpoint, folder)
    assert [p.name for p in out.iterdir()] == ["m.safetensors"]
    assert (out / "m.safetensors").read_bytes() == path.read_bytes()


def test_a_file_that_changed_meanwhile_is_refused(tmp_path: Path) -> None:
    source = sharded(tmp_path / "in")
    with open_checkpoint(source) as checkpoint:
        (source / "config.json").write_text("{}")
        with pytest.raises(CheckpointError, match="changed during the repair"), staged(tmp_path / "out") as folder:
            carry_over(checkpoint, folder)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_the_destination_must_be_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / "empty")
    for place in ("full", "file", "missing/deep"):
        with pytest.raises(UsageError):
            check_destination(tmp_path / place)
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(UsageError, match="new folder below it"):
        check_destination(Path())
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda _: True)
        with pytest.raises(UsageError, match="new folder below it"):
            check_destination(tmp_path / "empty")
    with staged(tmp_path / "empty") as folder:
        (folder / "x").write_text("1")
    assert (tmp_path / "empty" / "x").read_text() == "1"


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def fill() -> None:
        with staged(tmp_path / "out") as folder:
            (folder / "weights").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(AuditError, match="No space left"):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_no_destination(tmp_path: Path, sign: signal.Signals) -> None:
    script = (
        "import sys, time; from pathlib import Path; from audit_cli.repairs.output import staged\n"
        "with staged(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'm.safetensors').write_bytes(b'partial'); print('ready', flush=True); time.sleep(60)\n"
    )
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(sign)
        process.wait(timeout=30)
    time.sleep(0.1)
    assert not out.exists()
    assert all(path.name.startswith(".out.") for path in tmp_path.iterdir())


def test_a_model_card_keeps_what_was_there(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    card.write_text("# Mine\n")
    text = model_card(card, "unlearning", "a" * 64, "| clean accuracy | 90.0% | 89.5% |", "PASS")
    assert text.startswith("# Mine\n\n## Repair\n")
    assert "a" * 64 in text
    assert model_card(tmp_path / "none", "unlearning", "a" * 64, "", "FAIL").startswith("## Repair\n")


def test_what_would_be_carried_is_looked_at_first(tmp_path: Path) -> None:
    """A link out of the folder, and names that the repair writes itself."""
    source = sharded(tmp_path / "in")
    (source / "evidence").write_text("mine")
    with open_checkpoint(source) as checkpoint:
        assert set(carried(checkpoint)) == {"README.md", "LICENSE", "vocab.txt"}
    (tmp_path / "shared.json").write_text("{}")
    (source / "tokenizer.json").symlink_to(tmp_path / "shared.json")
    with open_checkpoint(source) as checkpoint, pytest.raises(CheckpointError, match=r"tokenizer.json: is a link"):
        carried(checkpoint)
