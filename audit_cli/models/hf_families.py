"""The table of Hugging Face image classifiers: which keys of config.json a family takes, each with its check.

Defaults are transformers' own, bounds are ours; every other key is ignored. `hf_image` builds from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from audit_cli.models import hf_config
from audit_cli.models.relative_positions import TABLE

Reader = Callable[[Mapping[str, object], str], Any]
_WINDOW_CAP = 32  # patches; the widest published is 24


def _whole(default: int, low: int = 1, high: int = hf_config.WIDTH_CAP) -> Reader:
    return lambda config, key: hf_config.integer(config, key, default, low=low, high=high)


def _real(default: float, low: float, high: float) -> Reader:
    return lambda config, key: hf_config.number(config, key, default, low=low, high=high)


def _one_of(allowed: tuple[object, ...], default: object) -> Reader:
    return lambda config, key: hf_config.choice(config, key, allowed, default)


def _side(default: int) -> Reader:
    return lambda config, key: hf_config.side(config, key, default)


def _stages(*default: int) -> Reader:
    return lambda config, key: hf_config.integers(config, key, list(default))


def _switch(default: bool) -> Reader:
    return _one_of((False, True), default)


def _epsilon(default: float) -> Reader:
    return _real(default, 0.0, 1.0)


EVERY: dict[str, Reader] = {"num_channels": _one_of((3,), 3)}
_TRANSFORMER: dict[str, Reader] = {
    "hidden_size": _whole(768),
    "num_hidden_layers": _whole(12),
    "num_attention_heads": _whole(12),
    "hidden_act": _one_of(hf_config.ACTIVATIONS, "gelu"),
    "image_size": _side(224),
}
_VIT = _TRANSFORMER | {
    "intermediate_size": _whole(3072),
    "layer_norm_eps": _epsilon(1e-12),
    "patch_size": _side(16),
    "qkv_bias": _switch(True),
}
_CONVNEXT: dict[str, Reader] = {
    "hidden_sizes": _stages(96, 192, 384, 768),
    "depths": _stages(3, 3, 9, 3),
    "num_stages": _whole(4, high=hf_config.LIST_CAP),
    "hidden_act": _one_of(hf_config.ACTIVATIONS, "gelu"),
    "layer_norm_eps": _epsilon(1e-12),
    "patch_size": _side(4),
    "image_size": _side(224),
}


@dataclass(frozen=True)
class Family:
    """One `…ForImageClassification`.

    name: of its classes in transformers, less Config and ForImageClassification. stem: a tensor only this family has.
    keys: what is taken from config.json, each with its check. fixed: what is set whatever the config says. head: its
    last linear layer. per_stage: keys whose lists must be as long as `depths`. grid: whether attention is over all
    patches at once. one_size: whether it takes images of `image_size` and no others. older: (part of a tensor name in
    older files, what transformers makes of it), applied in this order.
    """

    name: str
    stem: str
    keys: Mapping[str, Reader]
    fixed: Mapping[str, object]
    head: str = "classifier"
    per_stage: tuple[str, ...] = ()
    grid: bool = False
    one_size: bool = False
    older: tuple[tuple[str, str], ...] = ()

    @property
    def architecture(self) -> str:
        return f"{self.name}ForImageClassification"


_EAGER: dict[str, object] = {"attn_implementation": "eager"}  # all that those without attention accept
_STILL: dict[str, object] = {
    "attn_implementation": "sdpa",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_OLDER_MLP = ((".intermediate.dense.", ".mlp.fc1."), (".output.dense.", ".mlp.fc2."))
_OLDER_ATTENTION = (
    (".attention.attention.query.", ".attention.q_proj."),
    (".attention.attention.key.", ".attention.k_proj."),
    (".attention.attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
)
_OLDER_VIT = ((".encoder.layer.", ".layers."), *_OLDER_ATTENTION, *_OLDER_MLP)
_OLDER_BEIT = (
    *_OLDER_VIT,
    (".encoder.relative_position_bias.", ".shared_position_bias."),
    (".attention.attention.relative_position_bias.", ".relative_position_bias."),
)
_OLDER_SWIN = (
    (".attention.self.query.", ".attention.q_proj."),
    (".attention.self.key.", ".attention.k_proj."),
    (".attention.self.value.", ".attention.v_proj."),
    (f".attention.self.{TABLE}", f".attention.relative_position_bias.{TABLE}"),
    (".attention.output.dense.", ".attention.o_proj."),
    *_OLDER_MLP,
)
_PATCHES = "embeddings.patch_embeddings.projection.weight"
FAMILIES: Mapping[str, Family] = {  # model_type -> family
    "vit": Family("ViT", f"vit.{_PATCHES}", _VIT, _STILL, grid=True, one_size=True, older=_OLDER_VIT),
    "deit": Family("DeiT", f"deit.{_PATCHES}", _VIT, _STILL, grid=True, one_size=True, older=_OLDER_VIT),
    "beit": Family(
        "Beit",
        f"beit.{_PATCHES}",
        {key: reader for key, reader in _VIT.items() if key != "qkv_bias"}
        | {
            "layer_scale_init_value": _real(0.1, 0.0, 10.0),
            "use_mask_token": _switch(False),
            "use_absolute_position_embeddings": _switch(False),
            "use_relative_position_bias": _switch(False),
            "use_shared_relative_position_bias": _switch(False),
            "use_mean_pooling": _switch(True),
        },
        {**_STILL, "drop_path_rate": 0.0},
        grid=True,
        one_size=True,
        older=_OLDER_BEIT,
    ),
    "dinov2": Family(
        "Dinov2",
        f"dinov2.{_PATCHES}",
        _TRANSFORMER
        | {
            "mlp_ratio": _whole(4, high=64),
            "layer_norm_eps": _epsilon(1e-6),
            "patch_size": _side(14),
            "qkv_bias": _switch(True),
            "use_swiglu_ffn": _one_of((False,), False),
            "use_mask_token": _switch(True),
        },
        {**_STILL, "drop_path_rate": 0.0},
        grid=True,
        older=_OLDER_ATTENTION,
    ),
    "swin": Family(
        "Swin",
        f"swin.{_PATCHES}",
        {
            "embed_dim": _whole(96),
            "depths": _stages(2, 2, 6, 2),
            "num_heads": _stages(3, 6, 12, 24),
            "window_size": _whole(7, high=_WINDOW_CAP),
            "mlp_ratio": _real(4.0, 0.01, 64.0),
            "qkv_bias": _switch(True),
            "hidden_act": _one_of(hf_config.ACTIVATIONS, "gelu"),
            "use_absolute_embeddings": _switch(False),
            "layer_norm_eps": _epsilon(1e-5),
            "patch_size": _side(4),
            "image_size": _side(224),
        },
        {**_STILL, "drop_path_rate": 0.0},
        per_stage=("num_heads",),
        older=_OLDER_SWIN,
    ),
    "convnext": Family(
        "ConvNext",
        "convnext.embeddings.patch_embeddings.weight",
        _CONVNEXT | {"layer_scale_init_value": _real(1e-6, 0.0, 10.0)},
        {**_EAGER, "drop_path_rate": 0.0},
        per_stage=("hidden_sizes",),
    ),
    "convnextv2": Family(
        "ConvNextV2",
        "convnextv2.embeddings.patch_embeddings.weight",
        _CONVNEXT,
        {**_EAGER, "drop_path_rate": 0.0},
        per_stage=("hidden_sizes",),
    ),
    "regnet": Family(
        "RegNet",
        "regnet.embedder.embedder.convolution.weight",
        {
            "embedding_size": _whole(32),
            "hidden_sizes": _stages(128, 192, 512, 1088),
            "depths": _stages(2, 6, 12, 2),
            "groups_width": _whole(64),
            "layer_type": _one_of(("x", "y"), "y"),
            "hidden_act": _one_of(hf_config.ACTIVATIONS, "relu"),
            "downsample_in_first_stage": _switch(True),
        },
        _EAGER,
        head="classifier.1",
        per_stage=("hidden_sizes",),
    ),
    "mobilenet_v2": Family(
        "MobileNetV2",
        "mobilenet_v2.conv_stem.first_conv.convolution.weight",
        {
            "depth_multiplier": _real(1.0, 0.01, 10.0),
            "depth_divisible_by": _whole(8, high=1024),
            "min_depth": _whole(8, high=1024),
            "expand_ratio": _real(6.0, 0.1, 64.0),
            "output_stride": _one_of((8, 16, 32), 32),
            "first_layer_is_expansion": _switch(True),
            "finegrained_output": _switch(True),
            "hidden_act": _one_of(hf_config.ACTIVATIONS, "relu6"),
            "tf_padding": _switch(True),
            "layer_norm_eps": _epsilon(1e-3),
            "image_size": _side(224),
        },
        {**_EAGER, "classifier_dropout_prob": 0.0},
    ),
}
