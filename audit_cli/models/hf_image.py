"""Hugging Face image classifiers whose config is plain numbers: ViT, DeiT, BEiT, DINOv2, Swin, ConvNeXt (V2), RegNet …

One table says which keys of config.json a family takes, with transformers' own defaults and with bounds. They are
handed to a config object of our own; every other key is ignored, and the attention implementation is ours. The module
is made on the meta device and compared with the header before a weight is allocated.

transformers gives the same tensors one name in the file and another in memory, and other names in other versions. Both
are brought to one spelling here; weights are written back under the file's names.

Differs from transformers: dropout and stochastic depth are off, so a repair trains without them; images other than
square are not supported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from audit_cli.checkpoint import Checkpoint
from audit_cli.errors import CheckpointError, UnsupportedError
from audit_cli.models import hf_config
from audit_cli.models.blueprint import REMEDY, Blueprint, View, outline
from audit_cli.report.sanitise import clean

Reader = Callable[[Mapping[str, object], str], Any]
_GRID_CAP = 64  # patches along a side; attention over all of them takes memory with the fourth power
_WINDOW_CAP = 32  # patches; the widest published is 24
_INDEX, _TABLE = "relative_position_index", "relative_position_bias_table"


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


_EVERY: dict[str, Reader] = {"num_channels": _one_of((3,), 3)}
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
    patches at once. one_size: whether it takes images of `image_size` and no others.
    """

    name: str
    stem: str
    keys: Mapping[str, Reader]
    fixed: Mapping[str, object]
    head: str = "classifier"
    per_stage: tuple[str, ...] = ()
    grid: bool = False
    one_size: bool = False

    @property
    def architecture(self) -> str:
        return f"{self.name}ForImageClassification"


_EAGER: dict[str, object] = {"attn_implementation": "eager"}  # all that those without attention accept
_STILL: dict[str, object] = {
    "attn_implementation": "sdpa",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_PATCHES = "embeddings.patch_embeddings.projection.weight"
FAMILIES: Mapping[str, Family] = {  # model_type -> family
    "vit": Family("ViT", f"vit.{_PATCHES}", _VIT, _STILL, grid=True, one_size=True),
    "deit": Family("DeiT", f"deit.{_PATCHES}", _VIT, _STILL, grid=True, one_size=True),
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


def recognise(view: View, checkpoint: Checkpoint) -> Blueprint | None:
    """A Blueprint when the names are those of a family of the table, None when they are not."""
    for kind, family in FAMILIES.items():
        if family.stem in view.tensors:
            return _blueprint(kind, family, view, checkpoint)
    return None


def _blueprint(kind: str, family: Family, view: View, checkpoint: Checkpoint) -> Blueprint | None:
    where = clean(str(checkpoint.source))
    if "distillation_classifier.weight" in view.tensors:
        raise UnsupportedError(
            f"{where}: DeiT with a teacher averages two heads, and one linear head is needed; {REMEDY}"
        )
    classes = view.shape(f"{family.head}.weight")[:1]
    if not classes:
        return None
    if checkpoint.config is None:
        raise UnsupportedError(
            f"{where}: Hugging Face {family.name} weights without config.json; give the model folder"
        )
    settings = _settings(kind, family, view, checkpoint.config) | {"num_labels": classes[0]}
    side = settings.get("image_size", 224)
    shape = next(settings[key] for key in ("depths", "num_hidden_layers", "depth_multiplier") if key in settings)
    blueprint = Blueprint(
        arch=f"hf-{kind}-{'-'.join(map(str, shape)) if isinstance(shape, list) else shape}",
        make=partial(_make, family, settings),
        head=f"model.{family.head}",
        names={},
        size=(side, side),
        labels=hf_config.labels(checkpoint.config, classes[0]),
        mismatch=CheckpointError,
        complete=_complete,
        constants=_constants(view),
    )
    return replace(blueprint, names=_names(outline(blueprint, checkpoint), view, blueprint.constants))


def _settings(kind: str, family: Family, view: View, config: Mapping[str, object]) -> dict[str, Any]:
    """The arguments of our own config object, every one checked."""
    if config.get("model_type") != kind or config.get("architectures") not in (None, [family.architecture]):
        raise hf_config.contradiction(
            "model_type or architectures", f"is not that of {family.architecture}, as the tensors are"
        )
    read = {key: reader(config, key) for key, reader in (_EVERY | dict(family.keys)).items()}
    key = "depths" if "depths" in read else "num_hidden_layers"
    layers = read.get(key, [])
    if (sum(layers) if isinstance(layers, list) else layers) > len(view.tensors):  # else they could ask for 10**9
        raise hf_config.contradiction(key, "promises more layers than the weights hold")
    for key in family.per_stage:
        if len(read[key]) != len(read["depths"]):
            raise hf_config.contradiction(key, "has not as many stages as depths")
    if "patch_size" in read and read["patch_size"] > read["image_size"]:
        raise hf_config.contradiction("patch_size", "is larger than image_size")
    if family.grid and read["image_size"] // read["patch_size"] > _GRID_CAP:
        raise hf_config.contradiction("image_size", f"is more than {_GRID_CAP} patches")
    if "hidden_sizes" in read and family.name.startswith("ConvNext"):
        read["num_stages"] = len(read["depths"])
    return read | dict(family.fixed)


def _make(family: Family, settings: Mapping[str, Any]) -> nn.Module:
    import transformers  # slow to import, and only needed here

    config = getattr(transformers, f"{family.name}Config")(**settings)
    model = getattr(transformers, family.architecture)(config)
    return hf_config.Logits(model, settings["image_size"] if family.one_size else None)


# ---- names ----

_SPELLINGS = (  # applied in this order to the names of file and module alike
    (".encoder.relative_position_bias.", ".shared_position_bias."),
    (".encoder.layer.", ".layers."),
    (".attention.attention.", ".attention."),
    (".attention.self.", ".attention."),
    (".attention.query.", ".attention.q_proj."),
    (".attention.key.", ".attention.k_proj."),
    (".attention.value.", ".attention.v_proj."),
    (".attention.output.dense.", ".attention.o_proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    (f".relative_position_bias.{_TABLE}", f".{_TABLE}"),
    (f".attention.{_TABLE}", f".{_TABLE}"),
)


def _spelling(name: str) -> str:
    for old, new in _SPELLINGS:
        name = name.replace(old, new)
    return name


def _names(module: nn.Module, view: View, constants: Mapping[str, object]) -> dict[str, str]:
    """Module tensor name -> checkpoint tensor name; a tensor the module lacks keeps its own, for `compare` to name."""
    stored = {short: info.name for short, info in view.tensors.items() if info.name not in constants}
    ours = {_spelling(name.removeprefix("model.")): name for name in module.state_dict()}
    return {ours.get(_spelling(short), f"model.{short}"): original for short, original in stored.items()}


# ---- relative positions ----


def relative_index(window: int, cls: bool = False) -> Tensor:
    """Which row of the bias table belongs to each pair of patches of a window, flat int64: (window**4,).

    The rows are ordered by vertical, then horizontal offset. cls: with a leading class token, whose three kinds of pair
    have the last three rows: ((window**2 + 1)**2,). Swin: Liu et al. 2021; BEiT: Bao et al. 2022.
    """
    line, reach = torch.arange(window), 2 * window - 1
    offset = line[:, None] - line[None] + window - 1  # (w, w), 0..2w-2
    index = (offset[:, None, :, None] * reach + offset[None, :, None, :]).reshape(window**2, window**2)
    if not cls:
        return index.flatten()
    whole = torch.empty(window**2 + 1, window**2 + 1, dtype=torch.int64)
    whole[1:, 1:] = index
    whole[0, :], whole[:, 0], whole[0, 0] = reach**2, reach**2 + 1, reach**2 + 2
    return whole.flatten()


def _complete(module: nn.Module) -> None:
    """Swin's index is a buffer that files no longer hold."""
    for part in module.modules():
        index = getattr(part, _INDEX, None)
        if isinstance(index, Tensor):
            setattr(part, _INDEX, relative_index(math.isqrt(math.isqrt(index.numel()))).view(index.shape))


def _constants(view: View) -> dict[str, Callable[[], Tensor]]:
    """The index tensors that older files hold beside their bias table, and what must be in them."""
    found: dict[str, Callable[[], Tensor]] = {}
    for name, info in view.tensors.items():
        if name.endswith(f".{_INDEX}"):
            rows = (view.shape(name.removesuffix(_INDEX) + _TABLE) or (0,))[0]
            cls = math.isqrt(rows) ** 2 != rows
            window = (math.isqrt(rows - 3 if cls else rows) + 1) // 2 if rows > 3 or not cls else 0
            pairs = (window**2 + 1) ** 2 if cls else window**4
            if math.prod(info.shape) != pairs or info.dtype != "I64":
                raise CheckpointError(f"`{clean(info.name, 60)}` does not fit its bias table; export the model again")
            found[info.name] = partial(relative_index, window, cls)
    return found
