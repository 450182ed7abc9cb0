"""CLIP's tokenizer from hostile files: transformers' ids, or an error before anything is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from audit_cli.checkpoint import open_checkpoint
from audit_cli.checkpoint.config import TOKENIZER_CAP
from audit_cli.errors import CheckpointError
from audit_cli.models import Prompts, build
from audit_cli.models.clip_tokenizer import read_tokenizer

TEXTS = [
    "a photo of a cat.",
    "A  PHOTO\tof the Red FOX!",
    "it's the bird's, they'll say",
    "digit 7 and 1234",
    "naïve café 日本語 🦊 é",
    "",
    "unseen-words_with.punctuation?! (and more)",
    "seven " * 40,
]
MakeClip = Callable[..., Path]


@pytest.mark.parametrize("files", ["json", "pair"])
def test_ids_are_transformers(clip_folder: MakeClip, files: str) -> None:
    path = clip_folder(files=files)
    theirs = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    with open_checkpoint(path) as checkpoint:
        tokenize, end = read_tokenizer(checkpoint, 600, 16)
        assert {"json": {"tokenizer.json"}, "pair": {"vocab.json", "merges.txt"}}[files] <= {
            file.path for file in checkpoint.files
        }
    assert end == theirs.eos_token_id
    for text in TEXTS:
        assert tokenize([text])[0].tolist() == theirs(text, truncation=True, max_length=16)["input_ids"], text
    batch = tokenize(TEXTS)
    assert (batch.shape, batch.dtype) == ((len(TEXTS), 16), torch.int64)
    assert batch[:, -1].tolist() == [end] * len(TEXTS)


def test_tokenizer_json_wins_as_in_transformers(clip_folder: MakeClip) -> None:
    path = clip_folder()
    (path / "vocab.json").write_text("{}")
    (path / "merges.txt").write_text("")
    with open_checkpoint(path) as checkpoint:
        assert len(read_tokenizer(checkpoint, 600, 16)[0](["cat"])[0]) == 3


def test_only_vocabulary_and_merges_are_read(clip_folder: MakeClip) -> None:
    """Other components of the file, which could make any text any other, change nothing."""
    path = clip_folder()
    with open_checkpoint(path) as checkpoint:
        before = read_tokenizer(checkpoint, 600, 16)[0](TEXTS)
    document = json.loads((path / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Replace", "pattern": {"String": "cat"}, "content": "dog"}
    document["added_tokens"] = [{"id": 1, "content": "cat", "special": True}]
    document["truncation"] = {"max_length": 1}
    (path / "tokenizer.json").write_text(json.dumps(document))
    (path / "tokenizer_config.json").write_text('{"model_max_length": 1, "auto_map": {"AutoTokenizer": "evil.T"}}')
    with open_checkpoint(path) as checkpoint:
        assert torch.equal(read_tokenizer(checkpoint, 600, 16)[0](TEXTS), before)


SPECIALS: list[dict[str, dict[str, Any]]] = [
    {"tokenizer_config.json": {"pad_token": "!", "bos_token": "red</w>"}},
    {"special_tokens_map.json": {"eos_token": "bird</w>", "pad_token": {"content": "!", "lstrip": True}}},
    {
        "tokenizer_config.json": {
            "bos_token": {"content": "fox</w>", "rstrip": True, "normalized": True, "__type": "AddedToken"},
            "pad_token": "?",
        },
        "special_tokens_map.json": {"pad_token": "!"},
    },
    {"tokenizer_config.json": {"pad_token": {"content": "!", "single_word": True, "__type": "AddedToken"}}},
    {
        "tokenizer_config.json": {"pad_token": "!", "added_tokens_decoder": {}},
        "special_tokens_map.json": {"pad_token": "?"},
    },
]


@pytest.mark.parametrize("files", SPECIALS)
@pytest.mark.parametrize("vocabulary", ["json", "pair"])
def test_special_tokens_are_transformers(
    clip_folder: MakeClip, files: dict[str, dict[str, Any]], vocabulary: str
) -> None:
    path = clip_folder(files=vocabulary)
    for name, document in files.items():
        (path / name).write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **document}))
    theirs = CLIPTokenizer.from_pretrained(path, local_files_only=True)
    with open_checkpoint(path) as checkpoint:
        tokenize, end = read_tokenizer(checkpoint, 600, 16)
        assert set(files) <= {file.path for file in checkpoint.files}, "what decides belongs to the manifest"
    assert end == theirs.eos_token_id
    texts = [*TEXTS, "a cat ! and a dog", "red fox!", "bird?  fox"]
    assert tokenize(texts).tolist() == theirs(texts, padding=True, truncation=True, max_length=16)["input_ids"]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"pad_token": "no-such"}, "has no token no-such, the pad_token"),
        ({"eos_token": None}, "eos_token of the tokenizer's config is not a token"),
        ({"bos_token": 7}, "is not a token"),
        ({"bos_token": ["a"]}, "is not a token"),
        ({"bos_token": {"contents": "a"}}, "is not a token"),
        ({"bos_token": {"content": "!", "lstrip": "yes"}}, "is not a token"),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_hostile_special_tokens(clip_folder: MakeClip, name: str, document: dict[str, Any], message: str) -> None:
    path = clip_folder()
    (path / name).write_text(json.dumps(document))
    _refused(path, message)


def test_a_special_token_the_config_contradicts(clip_folder: MakeClip) -> None:
    path = clip_folder()
    (path / "special_tokens_map.json").write_text('{"eos_token": "cat</w>"}')
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match="eos_token_id"):
        build(checkpoint, prompts=Prompts(("cat", "dog")))


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    vocabulary: dict[str, int] = model["vocab"]
    return vocabulary


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: _vocabulary(m).update(cat=10**9), "id under 600"),
        (lambda m: _vocabulary(m).update(cat=-1), "id under 600"),
        (lambda m: _vocabulary(m).update(cat=True), "id under 600"),
        (lambda m: _vocabulary(m).update(cat="7"), "id|two tokens"),
        (lambda m: _vocabulary(m).update(cat=0), "two tokens have one id"),
        (lambda m: _vocabulary(m).update({"x" * 300: 599}), "1 to 256 characters"),
        (lambda m: _vocabulary(m).update({f"x{n}": n for n in range(600, 700)}), "tokens for 600 embeddings"),
        (lambda m: _vocabulary(m).pop("<|endoftext|>"), "has no token"),
        (lambda m: m["merges"].append("no-such token"), "names what is no token"),
        (lambda m: m["merges"].append("a b c"), "not two tokens"),
        (lambda m: m["merges"].append(7), "not two tokens"),
        (lambda m: m["merges"].append(["a", 7]), "not two tokens"),
        (lambda m: m["merges"].append(m["merges"][0]), "appears twice"),
        (lambda m: m.update(merges={"a": "b"}), "no vocab or no merges"),
        (lambda m: m.update(vocab=[["a", 0.0]]), "no vocab or no merges"),
        (lambda m: m.update(type="Unigram"), "not byte-pair"),
    ],
)
def test_hostile_entries(clip_folder: MakeClip, spoil: Callable[[dict[str, Any]], object], message: str) -> None:
    path = clip_folder()
    document = json.loads((path / "tokenizer.json").read_text())
    spoil(document["model"])
    (path / "tokenizer.json").write_text(json.dumps(document))
    _refused(path, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"model": ' + '{"x":' * 30 + "1" + "}" * 31, "nested too deeply"),
        ('{"model": {"vocab": {"a": 1, "a": 2}, "merges": []}}', "appears twice"),
        ('{"model": {"vocab": {"a": NaN}, "merges": []}}', "not strict JSON"),
        ('{"model": {"vocab": {"\\ud800": 1}, "merges": []}}', "not strict JSON"),
        ("[]", "not a JSON object"),
        ('{"model": 3}', "not byte-pair"),
    ],
)
def test_hostile_files(clip_folder: MakeClip, text: str, message: str) -> None:
    path = clip_folder()
    (path / "tokenizer.json").write_text(text)
    _refused(path, message)


def test_a_large_file_is_not_read(clip_folder: MakeClip) -> None:
    path = clip_folder()
    with (path / "tokenizer.json").open("r+b") as file:
        file.truncate(100 * 2**20)
    _refused(path, f"at most {TOKENIZER_CAP} are accepted")


def test_merges_that_are_no_text(clip_folder: MakeClip) -> None:
    path = clip_folder(files="pair")
    (path / "merges.txt").write_bytes(b"#version: 0.2\n\xff\xfe \xff\n")
    _refused(path, "not UTF-8")


def test_a_link_out_of_the_folder(clip_folder: MakeClip, tmp_path: Path) -> None:
    path = clip_folder()
    (path / "tokenizer.json").rename(tmp_path / "elsewhere.json")
    (path / "tokenizer.json").symlink_to(tmp_path / "elsewhere.json")
    _refused(path, "leads out of the model folder")


def _refused(path: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught, open_checkpoint(path) as checkpoint:
        read_tokenizer(checkpoint, 600, 16)
    assert str(caught.value).isprintable()
