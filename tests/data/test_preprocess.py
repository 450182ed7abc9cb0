"""Geometry equals torchvision's and Hugging Face's own pipelines on the same pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from audit_cli.data import Preprocessing, RawImages, from_config
from audit_cli.errors import DataError, UsageError

SIZES = [(40, 60), (61, 40), (33, 47), (50, 50), (224, 301), (100, 37)]


def raw(*sizes: tuple[int, int]) -> RawImages:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (h // 4 + 1, w // 4 + 1, 3), dtype=np.uint8) for h, w in sizes]
    images = [np.asarray(Image.fromarray(c).resize((w, h))) for c, (h, w) in zip(coarse, sizes, strict=True)]
    return RawImages.of(images, np.zeros(len(images), dtype=np.int64), ("a",), "test")


MODES = {
    "bilinear": transforms.InterpolationMode.BILINEAR,
    "bicubic": transforms.InterpolationMode.BICUBIC,
    "nearest": transforms.InterpolationMode.NEAREST,
    "lanczos": transforms.InterpolationMode.LANCZOS,
}


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize("resize", [36, (36, 41)])
def test_equals_torchvision(interpolation: str, resize: int | tuple[int, int]) -> None:
    data = raw(*SIZES)
    ours = Preprocessing((32, 32), resize, True, interpolation).geometry(data)  # type: ignore[arg-type]
    pipeline = transforms.Compose(
        [transforms.Resize(resize, MODES[interpolation]), transforms.CenterCrop(32), transforms.ToTensor()]
    )
    theirs = torch.stack([pipeline(Image.fromarray(image)) for image in data.images])
    assert ours.shape == (len(SIZES), 3, 32, 32)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


VIT = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "size": {"height": 48, "width": 40},
    "resample": 2,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.5, 0.6, 0.7],
}
CLIP = VIT | {
    "image_processor_type": "CLIPImageProcessor",
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "size": {"shortest_edge": 37},
    "resample": 3,
}
CONVNEXT = VIT | {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875}


@pytest.mark.parametrize(
    ("module", "name", "config"),
    [
        ("vit", "ViT", VIT),
        ("clip", "CLIP", CLIP),
        ("convnext", "ConvNext", CONVNEXT),
        ("convnext", "ConvNext", CONVNEXT | {"size": {"shortest_edge": 384}, "resample": 3}),
        ("bit", "Bit", CLIP | {"image_processor_type": "BitImageProcessor"}),
    ],
)
def test_equals_hugging_face(module: str, name: str, config: dict[str, object]) -> None:
    processors = pytest.importorskip(f"transformers.models.{module}.image_processing_pil_{module}")
    arguments = {key: value for key, value in config.items() if key != "image_processor_type"}
    processor = getattr(processors, f"{name}ImageProcessorPil")(**arguments)
    data = raw(*SIZES)
    found = from_config(config)
    assert found.mean is not None
    assert found.std is not None
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (found.mean, found.std))
    ours = (found.geometry(data) - mean) / std
    images = [Image.fromarray(image) for image in data.images]
    theirs = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_hugging_face_tensor_backend_is_within_rounding() -> None:
    """The default backend resizes 8-bit tensors with its own rounding: two grey levels at most."""
    transformers = pytest.importorskip("transformers.models.vit.image_processing_vit")
    data = raw(*SIZES)
    config = VIT | {"do_normalize": False}
    arguments = {key: value for key, value in config.items() if key != "image_processor_type"}
    processor = transformers.ViTImageProcessor(**arguments)
    images = [Image.fromarray(image) for image in data.images]
    theirs = torch.cat([processor(image, return_tensors="pt")["pixel_values"] for image in images])
    assert (from_config(config).geometry(data) - theirs).abs().max() <= 2 / 255


def test_images_of_the_final_size_are_left_alone() -> None:
    data = raw((32, 32))
    expected = torch.tensor(data.images[0]).permute(2, 0, 1)[None] / 255
    for p in (Preprocessing(), Preprocessing((32, 32), 36, crop=True), Preprocessing.for_size((32, 32))):
        assert torch.equal(p.geometry(data), expected)


def test_for_size() -> None:
    assert Preprocessing.for_size((32, 32)).geometry(raw(*SIZES)).shape == (6, 3, 32, 32)
    assert Preprocessing.for_size((20, 30)).geometry(raw(*SIZES)).shape == (6, 3, 20, 30)


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(DataError, match=r"images of 2 sizes.*--size"):
        Preprocessing().geometry(raw((8, 8), (8, 9)))
    with pytest.raises(DataError, match="does not fit"):
        Preprocessing(size=(8, 8)).geometry(raw((8, 9)))
    with pytest.raises(DataError, match="smaller than the crop"):
        Preprocessing(size=(8, 8), crop=True).geometry(raw((8, 7)))
    with pytest.raises(DataError, match="would become"):
        Preprocessing.for_size((224, 224)).geometry(raw((1, 100_000)))


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": (0, 1)},
        {"size": (4096, 1)},
        {"resize": 0},
        {"resize": -1},
        {"resize": (1, 2049)},
        {"crop": True},
        {"interpolation": "magic"},
        {"mean": (0, 0, 0)},
        {"mean": (0, 0), "std": (1, 1)},
        {"mean": (0, 0, float("nan")), "std": (1, 1, 1)},
        {"mean": (0, 0, 0), "std": (1, 1, 0)},
    ],
)
def test_impossible_settings(arguments: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Preprocessing(**arguments)  # type: ignore[arg-type]


def test_older_configs_with_bare_numbers() -> None:
    vit = from_config(VIT | {"size": 48, "image_processor_type": None, "feature_extractor_type": "ViTFeatureExtractor"})
    assert (vit.size, vit.resize, vit.crop) == ((48, 48), (48, 48), False)
    clip = from_config(CLIP | {"size": 37, "crop_size": 32})
    assert (clip.size, clip.resize, clip.crop) == ((32, 32), 37, True)
    convnext = from_config(CONVNEXT | {"size": 224, "crop_pct": None})
    assert (convnext.size, convnext.resize, convnext.crop) == ((224, 224), 256, True)


@pytest.mark.parametrize(
    "change",
    [
        {"image_processor_type": "EvilImageProcessor"},
        {"image_processor_type": None},
        {"size": {"height": 10**12, "width": 10**12}},
        {"size": {"height": 0, "width": 1}},
        {"size": {"height": True, "width": 1}},
        {"size": {"shortest_edge": 48}},
        {"size": {"longest_edge": 48}},
        {"size": None},
        {"size": "48"},
        {"resample": 4},
        {"resample": None},
        {"resample": True},
        {"image_mean": None},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": [0.5, 0.5, float("nan")]},
        {"image_mean": ["a", 0.5, 0.5]},
        {"image_std": [0.5, 0.5, 0.0]},
        {"image_std": [0.5, 0.5, -1]},
        {"rescale_factor": 1 / 127.5},
        {"rescale_factor": "x"},
        {"rescale_factor": 10**400},
        {"do_rescale": False},
        {"do_resize": "yes"},
        {"do_flip_channel_order": True},
        {"do_pad": True},
        {"rescale_offset": True},
        {"do_center_crop": True, "crop_size": 100},
        {"do_center_crop": True},
    ],
)
def test_strange_configs_are_refused_with_the_remedy(change: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"preprocessor_config\.json: .*pass --size, --mean and --std"):
        from_config(VIT | change)
    with pytest.raises(UsageError, match=r"^processor_config\.json: .*pass --size, --mean and --std"):
        from_config(VIT | change, "processor_config.json")


@pytest.mark.parametrize("crop_pct", [0, -1, 1e-9, float("inf"), 10**400, "0.9"])
def test_strange_crop_pct(crop_pct: object) -> None:
    with pytest.raises(UsageError, match="crop_pct"):
        from_config(CONVNEXT | {"crop_pct": crop_pct})
