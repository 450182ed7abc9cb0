"""Any module as an opened checkpoint, and the data that is not ours."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from audit_cli.checkpoint import Checkpoint, open_checkpoint
from audit_cli.checkpoint.save import save_weights


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Checkpoint]]:
    """opened(state, rename): the tensors, saved under renamed names and opened, until the test ends."""
    with ExitStack() as stack:

        def open_(state: Mapping[str, Tensor], rename: Callable[[str], str] = lambda name: name) -> Checkpoint:
            path = tmp_path / "m.safetensors"
            save_weights(path, {rename(name): tensor for name, tensor in state.items()}, {"format": "pt"})
            return stack.enter_context(open_checkpoint(path))

        yield open_


@pytest.fixture
def randomised() -> Callable[[nn.Module], nn.Module]:
    """A module in eval mode whose BatchNorm statistics and scales are not at their trivial start."""

    def change(module: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        for name, tensor in module.state_dict().items():
            if "running_var" in name or (tensor.ndim == 1 and "weight" in name):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            elif "running_mean" in name or (tensor.ndim == 1 and "bias" in name):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
        return module.eval()

    return change


@pytest.fixture
def shared_data() -> Path:
    folder = os.environ.get("AUDIT_CLI_DATA")
    if not folder:
        pytest.skip("AUDIT_CLI_DATA is unset: no third-party checkpoints")
    return Path(folder)


WORDS = ("a", "photo", "of", "the", "cat", "dog", "red", "fox", "digit", "seven", "bird")
TEXT_SIDE = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGE_SIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def byte_pairs(words: Sequence[str]) -> tuple[dict[str, int], list[str]]:
    """Vocabulary and merges that know all bytes, and each of `words` as one token."""
    letters = sorted(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[str] = []
    for word in words:
        left = word[0] if len(word) > 1 else ""
        for number, letter in enumerate(word[1:], start=2):
            right = letter + ("</w>" if number == len(word) else "")
            if f"{left} {right}" not in merges:
                merges.append(f"{left} {right}")
                tokens.append(left + right)
            left += right
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges


@pytest.fixture
def clip_folder(tmp_path: Path) -> Callable[..., Path]:
    """clip_folder(shards, legacy): a small random CLIPModel as `save_pretrained` leaves it, and its tokenizer.

    shards: files to spread the weights over. files: "json" for tokenizer.json, "pair" for vocab.json and merges.txt.
    legacy: the eos_token_id that configs once stated wrongly. dtype: of the weights.
    """

    def make(shards: int = 1, files: str = "json", legacy: bool = False, dtype: torch.dtype = torch.float32) -> Path:
        vocabulary, merges = byte_pairs(WORDS)
        end = 2 if legacy else vocabulary["<|endoftext|>"]
        text = TEXT_SIDE | {"vocab_size": len(vocabulary), "max_position_embeddings": 16, "eos_token_id": end}
        vision = IMAGE_SIDE | {"image_size": 32, "patch_size": 8}
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)).to(dtype)
        path = tmp_path / "clip"
        path.mkdir()
        (path / "config.json").write_text(model.config.to_json_string())
        names = sorted(model.state_dict())
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        if shards == 1:
            save_weights(path / "model.safetensors", state, {"format": "pt"})
        else:
            where = {name: f"model-{number % shards}.safetensors" for number, name in enumerate(names)}
            for file in set(where.values()):
                part = {name: state[name] for name in names if where[name] == file}
                save_weights(path / file, part, {"format": "pt"})
            (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
        if files == "json":
            pairs = [tuple(merge.split(" ")) for merge in merges]
            CLIPTokenizer(vocab=vocabulary, merges=pairs).backend_tokenizer.save(str(path / "tokenizer.json"))
        elif files == "pair":
            (path / "vocab.json").write_text(json.dumps(vocabulary))
            (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        return path

    return make
