"""CLIP as a zero-shot classifier: the image tower, and a head made of text embeddings.

Radford et al.: Learning Transferable Visual Models From Natural Language Supervision, 2021,
https://arxiv.org/abs/2103.00020. The class whose sentence is nearest to the image wins:

    logits = e^s · z · Wᵀ     z: projected image embedding, of length 1
                              W: a row per label: the mean of its sentences' embeddings, of length 1 again

The sentences are embedded once, when the classifier is built; after that the text side is one matrix product. The head
is derived from the checkpoint and no part of it: it is no parameter, so no repair trains it, and what is written back
is the image tower. `latents` are z.

Differs from the paper: none; the towers are transformers', built from checked numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from audit_cli.checkpoint import Checkpoint
from audit_cli.classifier import Classifier, Encoder
from audit_cli.errors import AuditError, CheckpointError, UnsupportedError
from audit_cli.models.blueprint import Blueprint, View, check, classifier, fill
from audit_cli.models.clip_tokenizer import Tokenizer, read_tokenizer
from audit_cli.models.hf_config import choice, contradiction, integer, number
from audit_cli.models.prompts import Prompts
from audit_cli.report.sanitise import clean

CLASS = "CLIPModel"
TEXT_BATCH = 64  # sentences embedded at once
_TOKENS = "text_model.embeddings.token_embedding.weight"
_PATCHES = "vision_model.embeddings.patch_embedding.weight"
_ACTIVATIONS = ("quick_gelu", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "silu")
_POSITIONS = ".embeddings.position_ids"  # 0, 1, 2 …: old files hold them, transformers ignores them
_LEGACY_END = 2  # an eos_token_id that configs stated wrongly; the highest id of the sentence is taken instead


class TextHead(nn.Linear):
    """A linear layer without bias whose weight (classes, D) is a buffer, in no state dict. (N, D) -> (N, classes)."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        del self.weight
        self.register_buffer("weight", weight, persistent=False)


class ImageTower(nn.Module):
    """The image tower of `clip`, with its projection."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.vision_model = cast(nn.Module, clip.vision_model)
        self.visual_projection = cast(nn.Module, clip.visual_projection)

    def latents(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D), of length 1."""
        pooled = self.vision_model(pixel_values=x, return_dict=True).pooler_output
        return F.normalize(self.visual_projection(pooled), dim=-1)


class ZeroShot(ImageTower):
    """The image tower of `clip` under `head`. Normalised images (N, 3, H, W) -> logits (N, classes)."""

    def __init__(self, clip: nn.Module, head: TextHead, prompts: Prompts) -> None:
        super().__init__(clip)
        self.head = head
        self.prompts = prompts

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.latents(x)))


@dataclass(frozen=True)
class DualEncoder(Blueprint):
    """Both towers as the checkpoint has them; a classifier only together with prompts.

    vocabulary: rows of the token embedding. context: longest sentence, tokens. end: the config's eos_token_id.
    """

    vocabulary: int = field(default=0, kw_only=True)
    context: int = field(default=0, kw_only=True)
    end: int = field(default=0, kw_only=True)

    def tokenizer(self, checkpoint: Checkpoint) -> Tokenizer:
        """The checked tokenizer; CheckpointError when its end token is not where the text tower looks for it."""
        tokenize, end = read_tokenizer(checkpoint, self.vocabulary, self.context)
        if self.end not in (end, _LEGACY_END):
            raise contradiction("text_config.eos_token_id", f"is not {end}, the end token of the tokenizer")
        return tokenize

    def text_side(self, checkpoint: Checkpoint) -> str:
        sizes = f"context {self.context} tokens, vocabulary {self.vocabulary:,}"
        try:
            self.tokenizer(checkpoint)
        except AuditError as error:
            return f"{sizes}, tokenizer unusable: {error}"
        return f"{sizes}, tokenizer usable"

    def classifier(
        self, checkpoint: Checkpoint, prompts: Prompts, *, mean: Sequence[float], std: Sequence[float]
    ) -> Classifier:
        """The zero-shot classifier for the labels of `prompts`, float32, on the CPU."""
        tokenize = self.tokenizer(checkpoint)
        model = self._filled(checkpoint)
        scale = cast(Tensor, model.logit_scale).detach().exp()
        module = ZeroShot(model, TextHead(scale * embed(model, tokenize, prompts)), prompts)
        names = {name: self.names[name] for name in module.state_dict()}
        return classifier(module, replace(self, head="head", names=names, labels=prompts.labels), mean, std)

    def encoder(self, checkpoint: Checkpoint, *, mean: Sequence[float], std: Sequence[float]) -> Encoder:
        """The image tower alone, float32, on the CPU; the tokenizer is not looked at."""
        module = ImageTower(self._filled(checkpoint))
        names = {name: self.names[name] for name in module.state_dict()}
        encoder = Encoder(module, arch=self.arch, mean=mean, std=std, size=self.size, names=names)
        return encoder.eval()

    def _filled(self, checkpoint: Checkpoint) -> nn.Module:
        """Both towers with their weights."""
        model = fill(check(self, checkpoint), self, checkpoint)
        for tower in (model.text_model, model.vision_model):
            _number_positions(cast(nn.Module, tower))
        return model


def recognise(view: View, checkpoint: Checkpoint) -> DualEncoder | None:
    """A blueprint when the names are transformers' CLIP names with both towers, None when they are not."""
    if len(view.shape(_TOKENS)) != 2 or len(view.shape(_PATCHES)) != 4:
        return None
    config = checkpoint.config
    if config is None:
        where = clean(str(checkpoint.source))
        raise UnsupportedError(f"{where}: CLIP weights without config.json; give the model folder")
    if config.get("model_type") != "clip" or config.get("architectures") not in (None, [CLASS]):
        raise contradiction("model_type or architectures", f"is not that of {CLASS}, as the tensors are")
    text, vision = _part(config, "text_config"), _part(config, "vision_config")
    settings: dict[str, Any] = {
        "text": _tower(text, 512, 2048, 8, len(view.tensors)),
        "vision": _tower(vision, 768, 3072, 12, len(view.tensors)),
        "projection": integer(config, "projection_dim", 512),
    }
    vocabulary = integer(text, "vocab_size", 49_408, high=2**24)
    context = integer(text, "max_position_embeddings", 77, low=3)
    end = integer(text, "eos_token_id", 49_407, low=0, high=vocabulary - 1)
    settings["text"] |= {"vocab_size": vocabulary, "max_position_embeddings": context, "eos_token_id": end}
    settings["text"] |= {"bos_token_id": None, "pad_token_id": None}  # of no use here, and the defaults may not fit
    side, patch = integer(vision, "image_size", 224), integer(vision, "patch_size", 32)
    settings["vision"] |= {
        "image_size": side,
        "patch_size": patch,
        "num_channels": choice(vision, "num_channels", (3,), 3),
    }
    layers, width = settings["vision"]["num_hidden_layers"], settings["vision"]["hidden_size"]
    return DualEncoder(
        arch=f"clip-vit-{layers}x{width}-patch{patch}-{side}",
        make=partial(_make, settings),
        head="",
        names={name: original for name, original in view.names().items() if not name.endswith(_POSITIONS)},
        size=(side, side),
        mismatch=CheckpointError,
        vocabulary=vocabulary,
        context=context,
        end=end,
    )


def embed(model: nn.Module, tokenize: Tokenizer, prompts: Prompts) -> Tensor:
    """(labels, D), of length 1: per label the mean of its sentences' embeddings of length 1."""
    sentences = [sentence for label in prompts.labels for sentence in prompts.sentences(label)]
    text_model, project = cast(nn.Module, model.text_model), cast(nn.Module, model.text_projection)
    parts = []
    with torch.no_grad():
        for start in range(0, len(sentences), TEXT_BATCH):
            ids = tokenize(sentences[start : start + TEXT_BATCH])
            parts.append(F.normalize(project(text_model(input_ids=ids, return_dict=True).pooler_output), dim=-1))
    by_label = torch.cat(parts).view(len(prompts.labels), len(prompts.templates), -1)
    return F.normalize(by_label.mean(1), dim=-1)


def _part(config: Mapping[str, object], key: str) -> Mapping[str, object]:
    """One tower's config; transformers lets an old `…_dict` beside it win, an empty one too, unless that is null."""
    given = (config.get(name) for name in (f"{key}_dict", key))
    value = next((value for value in given if value is not None), {})
    if not isinstance(value, dict):
        raise contradiction(key, "is not an object")
    return value


def _tower(config: Mapping[str, object], width: int, inner: int, heads: int, tensors: int) -> dict[str, Any]:
    """What both towers have. tensors: of the checkpoint; a tower has more of them than layers."""
    settings = {
        "hidden_size": integer(config, "hidden_size", width),
        "intermediate_size": integer(config, "intermediate_size", inner),
        "num_hidden_layers": integer(config, "num_hidden_layers", 12),
        "num_attention_heads": integer(config, "num_attention_heads", heads),
        "hidden_act": choice(config, "hidden_act", _ACTIVATIONS, "quick_gelu"),
        "layer_norm_eps": number(config, "layer_norm_eps", 1e-5, low=0.0, high=0.1),
    }
    if cast(int, settings["num_hidden_layers"]) > tensors:
        raise contradiction("num_hidden_layers", "promises more layers than the weights hold")
    if cast(int, settings["hidden_size"]) % cast(int, settings["num_attention_heads"]):
        raise contradiction("num_attention_heads", "does not divide hidden_size")
    return settings


def _make(settings: Mapping[str, Any]) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel  # slow to import, and only needed here

    towers = {f"{name}_config": settings[name] for name in ("text", "vision")}
    return cast(nn.Module, CLIPModel(CLIPConfig(**towers, projection_dim=settings["projection"])))


def _number_positions(tower: nn.Module) -> None:
    """The position numbers, which no checkpoint needs to hold and which the meta device left without a value."""
    for module in tower.modules():
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            count = cast(nn.Embedding, module.position_embedding).num_embeddings
            module.position_ids = torch.arange(count)[None]
