"""Hugging Face image classifiers: the config is data, the module is ours, the logits are transformers'."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from audit_cli.checkpoint import open_checkpoint
from audit_cli.errors import AuditError, CheckpointError, UnsupportedError, UsageError
from audit_cli.models import build, identify
from audit_cli.models.hf_families import FAMILIES
from audit_cli.models.relative_positions import relative_index
from audit_cli.repairs.output import write_model

Randomised = Callable[[nn.Module], nn.Module]

_VIT = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
_SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 1], "num_heads": [1, 2], "window_size": 4}
_CONVNEXT = {"image_size": 32, "hidden_sizes": [8, 32], "depths": [2, 1], "num_stages": 2}
TINY: dict[str, tuple[str, dict[str, Any]]] = {  # test id -> (model_type, config)
    "vit": ("vit", _VIT | {"intermediate_size": 64}),
    "vit-no-bias": ("vit", _VIT | {"intermediate_size": 48, "qkv_bias": False, "hidden_act": "gelu_new"}),
    "deit": ("deit", _VIT | {"intermediate_size": 64}),
    "beit": ("beit", _VIT | {"intermediate_size": 64, "use_relative_position_bias": True}),
    "beit-shared": (
        "beit",
        _VIT
        | {"intermediate_size": 64, "use_shared_relative_position_bias": True, "use_absolute_position_embeddings": True}
        | {"use_mask_token": True, "use_mean_pooling": False, "layer_scale_init_value": 0.0},
    ),
    "dinov2": ("dinov2", _VIT | {"mlp_ratio": 2}),
    "swin": ("swin", _SWIN),
    "swin-absolute": ("swin", _SWIN | {"use_absolute_embeddings": True, "mlp_ratio": 2.0, "window_size": 3}),
    "convnext": ("convnext", _CONVNEXT),
    "convnextv2": ("convnextv2", _CONVNEXT),
    "regnet": ("regnet", {"hidden_sizes": [8, 16], "depths": [1, 2], "embedding_size": 8, "groups_width": 4}),
    "regnet-x": (
        "regnet",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "embedding_size": 8, "groups_width": 8, "layer_type": "x"},
    ),
    "mobilenet_v2": ("mobilenet_v2", {"image_size": 32, "depth_multiplier": 0.1, "finegrained_output": False}),
}


def theirs(case: str, **changes: Any) -> nn.Module:
    """transformers' own module, with weights far from their trivial start."""
    kind, settings = TINY[case]
    family = FAMILIES[kind]
    labels = {0: "ant", 1: "bee", 2: "cat"}
    config = getattr(transformers, f"{family.name}Config")(**settings | changes, id2label=labels)
    torch.manual_seed(0)
    module: nn.Module = getattr(transformers, family.architecture)(config)
    return lively(module)


def lively(module: nn.Module) -> nn.Module:
    """Weights far from their start, under which a signal would not survive 50 layers; in eval mode."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=(2 / parameter[0].numel()) ** 0.5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def folder(path: Path, model: Any, **changes: object) -> Path:
    """A model folder as `save_pretrained` makes it, with `changes` to the config; None drops a key."""
    model.save_pretrained(path)
    document = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
    return path


def test_every_family_has_a_row() -> None:
    assert {kind for kind, _ in TINY.values()} == FAMILIES.keys()


@pytest.mark.parametrize("case", TINY)
def test_logits_are_transformers_and_weights_go_back(case: str, randomised: Randomised, tmp_path: Path) -> None:
    model = randomised(theirs(case))
    images = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.4])
    with torch.no_grad():
        expected = model((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)).logits
    with open_checkpoint(folder(tmp_path / "model", model)) as checkpoint:
        ours = build(checkpoint, mean=mean.tolist(), std=std.tolist())
        with torch.no_grad():
            logits, latents = ours.outputs(images)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.head(latents), expected, rtol=0, atol=1e-4)
        assert expected.std(0).max() > 1e-3, "else any image would agree"
        assert (ours.num_classes, ours.labels) == (3, ("ant", "bee", "cat"))
        assert ours.size == (TINY[case][1].get("image_size", 224),) * 2
        assert set(ours.names.values()) == set(checkpoint.tensors)

        with torch.no_grad():
            ours.head.bias += 1.0  # what a repair does
        back = tmp_path / "back"
        back.mkdir()
        write_model(checkpoint, ours, back)
    (back / "config.json").write_text((tmp_path / "model" / "config.json").read_text())
    again, report = type(model).from_pretrained(back, output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        logits = again.eval()((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)).logits
    torch.testing.assert_close(logits, expected + 1.0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", ["vit", "beit", "dinov2", "swin", "convnext"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_reach_the_pixels(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    with open_checkpoint(folder(tmp_path, theirs(case))) as checkpoint:
        ours = build(checkpoint).on(torch.device("cpu")).clone().frozen()
    images = torch.rand(2, 3, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = nn.functional.cross_entropy(ours(images).float(), torch.tensor([0, 2]))
    (gradient,) = torch.autograd.grad(loss, images)
    assert bool(gradient.isfinite().all())
    assert bool((gradient.abs().amax((1, 2, 3)) > 0).all())


# ---- index tensors of older files ----


def with_index(path: Path, case: str, change: Callable[[Tensor], Tensor] = lambda index: index) -> Path:
    """The model as older versions of transformers wrote it: with the index beside each bias table."""
    folder(path, theirs(case))
    state = load_file(path / "model.safetensors")
    for name in [name for name in state if name.endswith("relative_position_bias_table")]:
        cls = case.startswith("beit")
        index = relative_index(4, cls)  # both cases have windows of 4 x 4
        pairs = int(len(index) ** 0.5)
        state[name.replace("bias_table", "index")] = change(index.view(pairs, pairs).clone())
    save_file(state, path / "model.safetensors", {"format": "pt"})
    return path


@pytest.mark.parametrize("case", ["swin", "beit", "beit-shared"])
def test_older_files_with_an_index(case: str, tmp_path: Path) -> None:
    model, images = theirs(case), torch.rand(2, 3, 32, 32)
    with open_checkpoint(with_index(tmp_path, case)) as checkpoint, torch.no_grad():
        torch.testing.assert_close(build(checkpoint)(images), model(images).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.flip(0), "is not what hf-swin-2-1 computes"),
        (lambda index: index[:-1], "does not fit its bias table"),
        (lambda index: index.float(), "does not fit its bias table"),
    ],
)
def test_an_index_of_its_own_is_refused(change: Callable[[Tensor], Tensor], message: str, tmp_path: Path) -> None:
    """An older transformers would use it, a newer one would not: two models in one file."""
    path = with_index(tmp_path, "swin", change)
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match=message):
        build(checkpoint)


# ---- names that lead to one tensor, or to none ----

_SWIN_0 = "swin.encoder.layers.0.blocks.0"


@pytest.mark.parametrize(
    ("case", "old", "new"),
    [
        ("vit", "vit.encoder.layer.0.attention.attention.query.weight", "vit.layers.0.attention.q_proj.weight"),
        ("beit", "beit.encoder.layer.1.output.dense.bias", "beit.layers.1.mlp.fc2.bias"),
        ("swin", f"{_SWIN_0}.attention.self.query.weight", f"{_SWIN_0}.attention.q_proj.weight"),
    ],
)
def test_a_tensor_under_two_spellings_is_refused(case: str, old: str, new: str, tmp_path: Path) -> None:
    """transformers loads one of the two, and which one depends on its version."""
    folder(tmp_path, theirs(case))
    state = load_file(tmp_path / "model.safetensors")
    given, other = (old, new) if old in state else (new, old)
    save_file(state | {other: torch.zeros_like(state[given])}, tmp_path / "model.safetensors", {"format": "pt"})
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="name one tensor") as said:
        identify(checkpoint)
    assert f"`{old}`" in str(said.value)
    assert f"`{new}`" in str(said.value)


@pytest.mark.parametrize(
    ("case", "old", "mixed"),
    [
        ("vit", ".layer.0.attention.attention.value.bias", ".layer.0.attention.attention.v_proj.bias"),
        ("vit", ".layer.0.attention.attention.query.weight", ".layer.0.attention.self.query.weight"),
        ("dinov2", ".layer.1.attention.attention.key.bias", ".layer.1.attention.attention.k_proj.bias"),
        ("swin", ".blocks.0.attention.self.value.bias", ".blocks.0.attention.attention.value.bias"),
    ],
)
def test_a_name_that_transformers_does_not_take_is_refused(case: str, old: str, mixed: str, tmp_path: Path) -> None:
    """It would leave the tensor as initialised, a bias at zero: another network than the one audited."""
    model = folder(tmp_path, theirs(case))
    state = load_file(model / "model.safetensors")
    state = {name.replace(old, mixed): tensor for name, tensor in state.items()}
    assert any(mixed in name for name in state)
    save_file(state, model / "model.safetensors", {"format": "pt"})
    with open_checkpoint(model) as checkpoint, pytest.raises(CheckpointError, match=r"no `model\..*unexpected"):
        identify(checkpoint)


# ---- hostile configs ----

HUGE = 10**12
HOSTILE: list[tuple[str, dict[str, object], str]] = [
    ("vit", {"hidden_size": HUGE}, "hidden_size is not an integer"),
    ("vit", {"hidden_size": 65_536}, "does not fit|cannot be built"),
    ("vit", {"hidden_size": True}, "hidden_size"),
    ("vit", {"hidden_size": [32]}, "hidden_size"),
    ("vit", {"hidden_size": {"a": 32}}, "hidden_size"),
    ("vit", {"hidden_size": -32}, "hidden_size"),
    ("vit", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ("vit", {"num_hidden_layers": 60_000}, "num_hidden_layers promises more layers"),
    ("vit", {"num_hidden_layers": 3}, r"no `model\.vit"),
    ("vit", {"num_hidden_layers": 1}, "unexpected"),
    ("vit", {"num_hidden_layers": "2"}, "num_hidden_layers"),
    ("vit", {"num_attention_heads": 0}, "num_attention_heads"),
    ("vit", {"num_attention_heads": 3}, "cannot be built|does not fit"),
    ("vit", {"num_attention_heads": 65_536}, "cannot be built|does not fit"),
    ("vit", {"image_size": 10**7}, "image_size is not the side"),
    ("vit", {"image_size": 2048}, "image_size is more than 64 patches"),
    ("vit", {"image_size": 64}, "position_embeddings"),
    ("vit", {"image_size": [32, 64]}, "image_size"),
    ("vit", {"image_size": [32, [32]]}, "image_size"),
    ("vit", {"patch_size": 64}, "patch_size is larger"),
    ("vit", {"patch_size": 0}, "patch_size"),
    ("vit", {"num_channels": 1}, "num_channels"),
    ("vit", {"layer_norm_eps": -1e-6}, "layer_norm_eps"),
    ("vit", {"layer_norm_eps": True}, "layer_norm_eps"),
    ("vit", {"layer_norm_eps": "1e-6"}, "layer_norm_eps"),
    ("vit", {"layer_norm_eps": 10**400}, "layer_norm_eps"),
    ("vit", {"qkv_bias": 1}, "qkv_bias"),
    ("vit", {"qkv_bias": False}, "unexpected"),
    ("vit", {"hidden_act": "os.system"}, "hidden_act is not one of"),
    ("vit", {"hidden_act": ["gelu"]}, "hidden_act"),
    ("vit", {"model_type": "beit"}, "model_type"),
    ("vit", {"architectures": ["ViTForMaskedImageModeling"]}, "architectures"),
    ("vit", {"id2label": {"0": "a"}}, "id2label does not name classes 0 to 2"),
    ("vit", {"id2label": {"0": "a", "1": "b", "2": 3}}, "id2label"),
    ("vit", {"id2label": ["a", "b", "c"]}, "id2label"),
    ("dinov2", {"use_swiglu_ffn": True}, "use_swiglu_ffn"),
    ("dinov2", {"mlp_ratio": 4.5}, "mlp_ratio"),
    ("swin", {"depths": [2, 10**9]}, "depths"),
    ("swin", {"depths": [2, 60_000]}, "depths promises more layers"),
    ("swin", {"depths": [1] * 9}, "depths"),
    ("swin", {"depths": [2]}, "num_heads has not as many stages"),
    ("swin", {"num_heads": [3, 5]}, "cannot be built|does not fit"),
    ("swin", {"window_size": 10**6}, "window_size"),
    ("swin", {"window_size": 8}, "relative_position_bias_table"),
    ("swin", {"mlp_ratio": HUGE}, "mlp_ratio"),
    ("convnext", {"hidden_sizes": [8]}, "hidden_sizes has not as many stages"),
    ("convnext", {"hidden_sizes": [8, 65_536]}, "does not fit"),
    ("convnext", {"num_stages": 1}, "num_stages is not the number of depths"),
    ("convnext", {"num_hidden_layers": 1}, "num_hidden_layers is not the number of depths"),
    ("convnextv2", {"num_stages": 4}, "num_stages is not the number of depths"),
    ("convnextv2", {"num_stages": None}, "num_stages is not an integer"),
    ("beit", {"use_relative_position_bias": False}, "unexpected"),
    ("beit", {"layer_scale_init_value": 0}, "unexpected"),
    ("regnet", {"groups_width": 65_536}, "cannot be built|does not fit"),
    ("mobilenet_v2", {"depth_multiplier": 1e300}, "depth_multiplier"),
    ("mobilenet_v2", {"depth_multiplier": 10}, "does not fit"),
    ("mobilenet_v2", {"output_stride": 12}, "output_stride"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {case: folder(tmp_path_factory.mktemp(case), theirs(case)) for case in sorted({row[0] for row in HOSTILE})}


@pytest.mark.parametrize(("case", "changes", "message"), HOSTILE)
def test_a_config_that_contradicts_the_weights(
    case: str, changes: dict[str, object], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "model.safetensors").write_bytes((folders[case] / "model.safetensors").read_bytes())
    document = json.loads((folders[case] / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(document))
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=message) as caught:
        identify(checkpoint)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"auto_map": {"AutoModelForImageClassification": "evil.Evil"}},
        {"auto_map": {"AutoConfig": "org/repo--evil.Evil"}},
        {"custom_pipelines": {"x": {"impl": "evil.Evil"}}},
        {"trust_remote_code": True},
        {"_attn_implementation": "org/kernel"},
        {"attn_implementation": "org/kernel:evil"},
        {"_attn_implementation_internal": "evil"},
        {"sub": [{"auto_map": {"AutoConfig": "evil.Evil"}}]},
        {"quantization_config": {"quant_method": "gptq"}},
    ],
)
def test_keys_that_ask_for_code(changes: dict[str, object], tmp_path: Path) -> None:
    """Refused before a weight is read; nothing of the folder is imported, though it is on the path."""
    folder(tmp_path, theirs("vit"), **changes)
    with pytest.raises(CheckpointError, match=r"config\.json"), open_checkpoint(tmp_path):
        pass


def test_other_keys_reach_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket, no import from the folder, and none of the file's own settings beside those that were checked."""
    mark = tmp_path / "ran"
    odd = {"torch_dtype": "evil", "name_or_path": "org/evil", "_name_or_path": "org/evil", "head_dim": 10**9}
    odd |= {"hidden_dropout_prob": 0.9, "output_attentions": True, "use_return_dict": False, "chunk_size": -1}
    odd |= {
        "pooler_output_size": 10**12,
        "backbone": "evil",
        "base_model_tp_plan": {"x": "y"},
        "pruned_heads": {"0": [0]},
    }
    model = theirs("vit")
    folder(tmp_path / "m", model, **odd)
    for name in ("modeling_evil.py", "configuration_evil.py", "conftest_evil.py"):
        (tmp_path / "m" / name).write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "m"))
    monkeypatch.setattr("socket.socket", None)
    with open_checkpoint(tmp_path / "m") as checkpoint:
        ours = build(checkpoint)
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.train()(images), model(images).logits, rtol=0, atol=1e-4)
    assert not mark.exists()


def test_stages_that_are_not_stated_are_four(tmp_path: Path) -> None:
    """transformers builds as many as it believes there are, and leaves the weights of the others aside."""
    path = folder(tmp_path, theirs("convnext"), num_stages=None)
    with open_checkpoint(path) as checkpoint, pytest.raises(CheckpointError, match="num_stages is not the number"):
        identify(checkpoint)


def test_nothing_is_allocated_for_a_config_that_lies(folders: dict[str, Path], tmp_path: Path) -> None:
    """The widest numbers that are within bounds would take 200 GB; on the meta device they take none."""
    document = json.loads((folders["vit"] / "config.json").read_text())
    document |= {"hidden_size": 65_536, "intermediate_size": 65_536, "num_hidden_layers": 40}
    (tmp_path / "config.json").write_text(json.dumps(document))
    (tmp_path / "model.safetensors").write_bytes((folders["vit"] / "model.safetensors").read_bytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="does not fit hf-vit-40"):
        identify(checkpoint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "KiB"


# ---- what is not there ----


def test_two_heads_are_not_one(tmp_path: Path) -> None:
    model = transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**TINY["deit"][1]))
    folder(tmp_path, model)
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(UnsupportedError, match="averages two heads"):
        identify(checkpoint)


@pytest.mark.parametrize(
    ("missing", "error", "message"),
    [
        ("config.json", UnsupportedError, "ViT weights without config.json; give the model folder"),
        ("classifier", UnsupportedError, r"no known architecture .*config\.json says `vit`"),
        ("vit.layernorm.weight", CheckpointError, r"no `model\.vit\.layernorm\.weight`"),
    ],
)
def test_what_is_missing_is_said(missing: str, error: type[AuditError], message: str, tmp_path: Path) -> None:
    folder(tmp_path, theirs("vit"))
    if missing == "config.json":
        (tmp_path / missing).unlink()
    state = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if not k.startswith(missing)}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(error, match=message):
        identify(checkpoint)


def test_images_of_another_size_are_a_usage_error(tmp_path: Path) -> None:
    with open_checkpoint(folder(tmp_path, theirs("vit"))) as checkpoint:
        ours = build(checkpoint)
    with pytest.raises(UsageError, match="takes 32x32 images, not 16x16; pass --size"):
        ours(torch.rand(1, 3, 16, 16))


def test_a_model_for_other_sizes_takes_them(tmp_path: Path) -> None:
    """DINOv2 classifiers are trained at 518 pixels and used at 224: positions are interpolated."""
    model, images = theirs("dinov2"), torch.rand(1, 3, 24, 24)
    with open_checkpoint(folder(tmp_path, model)) as checkpoint, torch.no_grad():
        torch.testing.assert_close(build(checkpoint)(images), model(images).logits, rtol=0, atol=1e-4)
