"""CLIP as a zero-shot classifier: transformers' logits, a head no repair can train, and text weights left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from audit_cli.checkpoint import open_checkpoint
from audit_cli.checkpoint.save import save_weights
from audit_cli.classifier import Classifier, Encoder
from audit_cli.errors import AuditError, CheckpointError, UnsupportedError, UsageError
from audit_cli.models import Prompts, build, identify, prompts_of
from audit_cli.repairs.feature_shift import FeatureShift
from audit_cli.repairs.output import carry_over, write_model
from audit_cli.training import Fit
from audit_cli.types import Context, TrustedData

LABELS = ("cat", "red fox", "the digit seven", "unheard-of bird")
TEMPLATES = ("a photo of a {}.", "the {}")
MakeClip = Callable[..., Path]


def loaded(path: Path, prompts: Prompts) -> Classifier:
    with open_checkpoint(path) as checkpoint:
        return build(checkpoint, prompts=prompts)


def changed(path: Path, **changes: object) -> Path:
    """The folder with `changes` to config.json; text__x and vision__x go into the towers' parts."""
    document = json.loads((path / "config.json").read_text())
    for key, value in changes.items():
        part, _, inner = key.partition("__")
        if inner and part in ("text", "vision"):
            document[f"{part}_config"][inner] = value
        else:
            document[key] = value
    (path / "config.json").write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
def test_logits_are_transformers(clip_folder: MakeClip, shards: int, legacy: bool) -> None:
    path = clip_folder(shards=shards, legacy=legacy)
    ours = loaded(path, Prompts(LABELS))
    theirs = CLIPModel.from_pretrained(path, local_files_only=True).eval()
    tokens = CLIPTokenizer.from_pretrained(path, local_files_only=True)(
        [f"a photo of a {label}." for label in LABELS],
        padding=True,
        truncation=True,
        max_length=16,
        return_tensors="pt",
    )
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(pixel_values=images, **tokens)
        logits, latents = ours.outputs(images)
    torch.testing.assert_close(logits, expected.logits_per_image, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours(images), logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(latents, expected.image_embeds, rtol=0, atol=1e-5)
    assert (ours.labels, ours.num_classes, ours.size, ours.arch) == (LABELS, 4, (32, 32), "clip-vit-2x32-patch8-32")


def test_templates_are_averaged_on_the_sphere(clip_folder: MakeClip) -> None:
    path = clip_folder()
    heads = [loaded(path, Prompts(LABELS, (template,))).head.weight for template in TEMPLATES]
    both = loaded(path, Prompts(LABELS, TEMPLATES)).head.weight
    scale = CLIPModel.from_pretrained(path, local_files_only=True).logit_scale.exp().detach()
    mean = (heads[0] + heads[1]) / scale
    torch.testing.assert_close(both, scale * mean / mean.norm(dim=1, keepdim=True), rtol=0, atol=1e-5)
    assert not torch.allclose(heads[0], both, atol=1e-3)


def test_gradients_reach_the_pixels(clip_folder: MakeClip) -> None:
    ours = loaded(clip_folder(), Prompts(LABELS)).frozen()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    ours(images)[:, 1].sum().backward()
    assert images.grad is not None
    assert bool((images.grad.flatten(1).norm(dim=1) > 0).all())


def test_training_moves_the_image_tower_and_nothing_else(clip_folder: MakeClip, tmp_path: Path) -> None:
    source, out = clip_folder(shards=2, dtype=torch.float16), tmp_path / "out"
    out.mkdir()
    with open_checkpoint(source) as checkpoint:
        ours = build(checkpoint, prompts=Prompts(LABELS))
        tuned = ours.clone()
        images, labels = torch.rand(8, 3, 32, 32), torch.arange(8) % 4
        Fit(steps=2, lr=0.1, batch=8, pad=0).run(tuned, images, labels, Context())
        assert torch.equal(tuned.head.weight, ours.head.weight)
        write_model(checkpoint, tuned, out)
        carry_over(checkpoint, out)
        before = checkpoint.load()
    with open_checkpoint(out) as written:
        after = written.load()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in moved} == {"vision_model", "visual_projection"}
    assert all(after[name].dtype == torch.float16 for name in before)
    assert {p.name for p in out.iterdir()} == {p.name for p in source.iterdir()}
    theirs = CLIPModel.from_pretrained(out, local_files_only=True).float().eval()
    reread = loaded(out, Prompts(LABELS))
    with torch.no_grad():
        pooled = theirs.visual_projection(theirs.vision_model(images).pooler_output)
        embeds = pooled / pooled.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(reread.latents(images), embeds, rtol=0, atol=1e-4)
    assert torch.equal(reread.head.weight, ours.head.weight)
    torch.testing.assert_close(reread(images), tuned(images), rtol=0, atol=0.2)  # rounded to half precision


def test_old_files_hold_position_numbers(clip_folder: MakeClip) -> None:
    path = clip_folder()
    with open_checkpoint(path) as checkpoint:
        state = checkpoint.load()
        before = build(checkpoint, prompts=Prompts(LABELS))
    extra = {f"{tower}_model.embeddings.position_ids": torch.arange(16)[None] for tower in ("text", "vision")}
    save_weights(path / "model.safetensors", {**state, **extra}, {"format": "pt"})
    images = torch.rand(1, 3, 32, 32)
    with open_checkpoint(path) as checkpoint:
        torch.testing.assert_close(build(checkpoint, prompts=Prompts(LABELS))(images), before(images))


def test_labels_come_from_the_user_else_from_the_data(clip_folder: MakeClip) -> None:
    with open_checkpoint(clip_folder()) as checkpoint:
        assert build(checkpoint, class_names=LABELS).labels == LABELS
        stated = build(checkpoint, prompts=Prompts(("dog", "cat")), class_names=LABELS)
        asked = build(checkpoint, prompts=Prompts((), TEMPLATES), class_names=LABELS)
        assert prompts_of(stated.clone()) == Prompts(("dog", "cat"))
        assert prompts_of(asked) == Prompts(LABELS, TEMPLATES)
        for names in ((), ("cat",)):
            with pytest.raises(UsageError, match="--labels"):
                build(checkpoint, class_names=names)
        with pytest.raises(UsageError, match="for CLIP models"):
            build(checkpoint, arch="torchvision:resnet18", prompts=Prompts(LABELS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text__vocab_size": 10**9}, "vocab_size is not an integer from 1"),
        ({"text__vocab_size": 10**7}, r"token_embedding\.weight` is \["),
        ({"text__max_position_embeddings": 60_000}, r"position_embedding\.weight"),
        ({"text__eos_token_id": 7}, "eos_token_id is not 5"),
        ({"text__eos_token_id": -1}, "eos_token_id"),
        ({"text__hidden_size": True}, "hidden_size"),
        ({"text_config_dict": {"hidden_size": 32}}, "does not fit clip"),  # it wins in transformers too
        ({"vision_config_dict": {}}, "does not fit clip"),  # and an empty one stands for the defaults
        ({"text_config_dict": False}, "text_config is not an object"),
        ({"text_config": [1]}, "text_config is not an object"),
        ({"vision__num_hidden_layers": 60_000}, "num_hidden_layers promises more layers"),
        ({"vision__num_hidden_layers": 3}, r"no `vision_model\.encoder\.layers\.2"),
        ({"vision__num_attention_heads": 5}, "num_attention_heads does not divide"),
        ({"vision__hidden_act": "os.system"}, "hidden_act is not one of"),
        ({"vision__layer_norm_eps": "1"}, "layer_norm_eps"),
        ({"vision__image_size": [32, 32]}, "image_size"),
        ({"vision__image_size": 65_536, "vision__patch_size": 1}, "does not fit clip"),
        ({"vision__num_channels": 1}, "num_channels"),
        ({"projection_dim": 64}, r"visual_projection\.weight"),
        ({"model_type": "clip_text_model"}, "model_type"),
        ({"architectures": ["EvilModel"]}, "architectures"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"vision__auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"vision___attn_implementation": "evil/kernel"}, "_attn_implementation"),
    ],
)
def test_a_config_that_contradicts_or_asks_for_code(
    clip_folder: MakeClip, changes: dict[str, Any], message: str
) -> None:
    path = changed(clip_folder(), **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        loaded(path, Prompts(LABELS))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("missing", "error", "message"),
    [
        ("config.json", UnsupportedError, "without config.json"),
        ("tokenizer.json", UnsupportedError, "the folder that has its tokenizer"),
    ],
)
def test_what_is_missing_is_said(clip_folder: MakeClip, missing: str, error: type[AuditError], message: str) -> None:
    path = clip_folder()
    (path / missing).unlink()
    with pytest.raises(error, match=message):
        loaded(path, Prompts(LABELS))


def test_inspection_tells_the_text_side_without_loading(clip_folder: MakeClip) -> None:
    path = clip_folder()
    with open_checkpoint(path) as checkpoint:
        assert identify(checkpoint).text_side(checkpoint) == ("context 16 tokens, vocabulary 540, tokenizer usable")
    (path / "tokenizer.json").write_text('{"model": {"vocab": {}, "merges": []}}')
    with open_checkpoint(path) as checkpoint:
        said = identify(checkpoint).text_side(checkpoint)
        assert said is not None
        assert "tokenizer unusable: tokenizer.json: 0 tokens" in said


def test_a_head_made_of_text_cannot_start_anew(clip_folder: MakeClip) -> None:
    ours = loaded(clip_folder(), Prompts(LABELS))
    data = TrustedData(torch.rand(8, 3, 32, 32), torch.arange(8) % 4, LABELS, "0" * 64)
    with pytest.raises(UnsupportedError, match="head is made of text and has no parameters"):
        FeatureShift(steps=1, batch=8, pad=1)(ours, data, Context())


def test_without_labels_it_is_an_encoder_where_that_will_do(clip_folder: MakeClip) -> None:
    path, images = clip_folder(), torch.rand(3, 3, 32, 32)
    expected = loaded(path, Prompts(LABELS)).latents(images)
    (path / "tokenizer.json").unlink()
    with open_checkpoint(path) as checkpoint:
        encoder = build(checkpoint, bare=True, mean=(0.5,) * 3, std=(0.5,) * 3)
        assert isinstance(encoder, Encoder)
        torch.testing.assert_close(encoder.latents(images * 0.5 + 0.5), expected, rtol=0, atol=1e-5)
        assert (encoder.arch, encoder.size) == ("clip-vit-2x32-patch8-32", (32, 32))
        assert set(encoder.names) == set(encoder.module.state_dict())
        for told in ({"prompts": Prompts()}, {"class_names": LABELS}, {"bare": False}):
            with pytest.raises(AuditError, match=r"names of its classes|without tokenizer\.json"):
                build(checkpoint, **{"bare": True, **told})  # type: ignore[arg-type]
