"""From a photograph to logits: the same as transformers' own image processor and model, whatever its shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn
from transformers import models as hf

from audit_cli.checkpoint import open_checkpoint
from audit_cli.checkpoint.save import save_weights
from audit_cli.data import RawImages, from_config
from audit_cli.models import build

SIZES = [(40, 60), (61, 40), (33, 47), (50, 50), (100, 37)]  # height, width
_VIT = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
_SQUARE = {"height": 32, "width": 32}
_NUMBERS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
_VIT_32 = _VIT | {"image_size": 32, "patch_size": 8}
_CROP = {"size": {"shortest_edge": 37}, "do_center_crop": True, "crop_size": _SQUARE, "resample": 3}
_CONVNEXT = {"size": {"shortest_edge": 32}, "resample": 3}

CASES: dict[str, tuple[str, dict[str, Any], str, str, dict[str, Any]]] = {
    # id -> (model, its config, the processor's module, its class, its settings)
    "vit": ("ViT", _VIT_32, "vit", "ViT", {"size": _SQUARE, "resample": 2}),
    "vit-as-it-is": ("ViT", _VIT_32, "vit", "ViT", {"size": _SQUARE, "resample": 0, "do_normalize": False}),
    "deit": ("DeiT", _VIT_32, "deit", "DeiT", {"size": {"height": 37, "width": 37}, "crop_size": _SQUARE}),
    "swin": (
        "Swin",
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 4},
        "vit",
        "ViT",
        {"size": _SQUARE, "resample": 3},
    ),
    "beit": ("Beit", _VIT_32, "beit", "Beit", {"size": _SQUARE, "resample": 1}),
    "beit-crop": (
        "Beit",
        _VIT_32 | {"use_relative_position_bias": True},
        "beit",
        "Beit",
        {"size": {"height": 40, "width": 36}, "do_center_crop": True, "crop_size": _SQUARE},
    ),
    "dinov2": ("Dinov2", _VIT_32 | {"image_size": 48}, "bit", "Bit", _CROP),
    "convnext": ("ConvNext", {"hidden_sizes": [8], "depths": [1], "num_stages": 1}, "convnext", "ConvNext", _CONVNEXT),
    "resnet": (
        "ResNet",
        {"hidden_sizes": [16], "depths": [1], "embedding_size": 8},
        "convnext",
        "ConvNext",
        _CONVNEXT | {"crop_pct": 0.8, "resample": 2},
    ),
    "mobilenet_v2": ("MobileNetV2", {"depth_multiplier": 0.1}, "mobilenet_v2", "MobileNetV2", _CROP | {"resample": 2}),
}


def photographs(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (h // 4 + 1, w // 4 + 1, 3), dtype=np.uint8) for h, w in sizes]
    return [Image.fromarray(c).resize((w, h)) for c, (h, w) in zip(coarse, sizes, strict=True)]


def model_and_folder(case: str, path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """transformers' model, saved with its processor's settings, and those settings."""
    name, settings, module, kind, numbers = CASES[case]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForImageClassification")(
        getattr(transformers, f"{name}Config")(**settings, num_labels=4)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)
    model.save_pretrained(path)
    numbers = _NUMBERS | numbers
    pil(module, kind)(**numbers).save_pretrained(path)
    return model, numbers


def pil(module: str, kind: str) -> Any:
    return getattr(getattr(getattr(hf, module), f"image_processing_pil_{module}"), f"{kind}ImageProcessorPil")


def our_logits(path: Path, images: list[Image.Image]) -> Tensor:
    arrays = [np.asarray(image) for image in images]
    raw = RawImages.of(arrays, np.zeros(len(arrays), dtype=np.int64), ("a",), "test")
    with open_checkpoint(path) as checkpoint, torch.no_grad():
        assert checkpoint.preprocessor is not None
        preprocessing = from_config(checkpoint.preprocessor, checkpoint.preprocessor_file)
        assert preprocessing.mean is not None
        assert preprocessing.std is not None
        ours = build(checkpoint, mean=preprocessing.mean, std=preprocessing.std)
        logits: Tensor = ours(preprocessing.geometry(raw))
    return logits


@pytest.mark.parametrize("case", CASES)
def test_logits_of_photographs(case: str, tmp_path: Path) -> None:
    model, numbers = model_and_folder(case, tmp_path)
    module, kind = CASES[case][2:4]
    processor = pil(module, kind)(**numbers)
    images = photographs(SIZES)
    with torch.no_grad():
        pixels = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])
        expected = model(pixels).logits
    torch.testing.assert_close(our_logits(tmp_path, images), expected, rtol=0, atol=1e-4)
    assert (expected.max(0).values - expected.min(0).values).max() > 1e-2, "else any image would agree"


@pytest.mark.parametrize("case", ["vit", "swin", "beit"])
def test_the_tensor_backend_agrees_where_nothing_is_resized(case: str, tmp_path: Path) -> None:
    """transformers' default backend resizes with a rounding of its own, see test_preprocess; the rest is the same."""
    model, numbers = model_and_folder(case, tmp_path)
    processor = getattr(transformers, f"{CASES[case][3]}ImageProcessor")(**numbers)
    images = photographs([(32, 32), (32, 32)])
    with torch.no_grad():
        expected = model(processor(images, return_tensors="pt")["pixel_values"]).logits
    torch.testing.assert_close(our_logits(tmp_path, images), expected, rtol=0, atol=1e-4)


def test_the_processor_as_older_versions_wrote_it(tmp_path: Path) -> None:
    model, numbers = model_and_folder("vit", tmp_path)
    older = {"feature_extractor_type": "ViTFeatureExtractor", "do_normalize": True, "do_resize": True, "size": 32}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(older | {"resample": 2} | _NUMBERS))
    processor = pil("vit", "ViT")(**numbers)
    images = photographs(SIZES)
    with torch.no_grad():
        pixels = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])
        torch.testing.assert_close(our_logits(tmp_path, images), model(pixels).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("legacy", [False, True])
def test_the_processor_of_the_whole_model(legacy: bool, tmp_path: Path) -> None:
    """Its `image_processor` section is what transformers takes, whatever preprocessor_config.json says beside it."""
    model = model_and_folder("vit-as-it-is", tmp_path)[0]
    beside = json.loads((tmp_path / "preprocessor_config.json").read_text())
    section = None if legacy else beside | {"do_normalize": True, "image_mean": [0.9, 0.1, 0.5]}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": section}))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path, local_files_only=True)
    assert processor.do_normalize is not legacy
    images = photographs([(32, 32), (32, 32)])
    with torch.no_grad():
        expected = model(processor(images, return_tensors="pt")["pixel_values"]).logits
    torch.testing.assert_close(our_logits(tmp_path, images), expected, rtol=0, atol=1e-4)


def test_what_a_clip_processor_saves(tmp_path: Path) -> None:
    """transformers 5 writes processor_config.json and no preprocessor_config.json."""
    save_weights(tmp_path / "model.safetensors", {"w": torch.ones(1)})
    tokenizer = transformers.CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
    transformers.CLIPProcessor(pil("clip", "CLIP")(**_CROP), tokenizer).save_pretrained(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.preprocessor is not None
        found = from_config(checkpoint.preprocessor, checkpoint.preprocessor_file)
    assert (found.size, found.resize, found.source) == ((32, 32), 37, "processor_config.json")
