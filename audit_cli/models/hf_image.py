"""Hugging Face image classifiers whose config is plain numbers: ViT, DeiT, BEiT, DINOv2, Swin, ConvNeXt (V2), RegNet …

One table says which keys of config.json a family takes, with transformers' own defaults and with bounds. They are
handed to a config object of our own; every other key is ignored, and the attention implementation is ours. The module
is made on the meta device and compared with the header before a weight is allocated.

transformers gives the same tensors one name in the file and another in memory, and other names in other versions. The
module's names are taken, and the older ones that transformers turns into them; a tensor under any other it would leave
as it was initialised. Weights are written back under the file's names.

Differs from transformers: dropout and stochastic depth are off, so a repair trains without them; images other than
square are not supported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from audit_cli.checkpoint import Checkpoint
from audit_cli.errors import CheckpointError, UnsupportedError
from audit_cli.models import hf_config
from audit_cli.models.blueprint import REMEDY, Blueprint, View, outline
from audit_cli.models.hf_families import EVERY, FAMILIES, Family
from audit_cli.models.relative_positions import complete, constants
from audit_cli.report.sanitise import clean

_GRID_CAP = 64  # patches along a side; attention over all of them takes memory with the fourth power


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
        complete=complete,
        constants=constants(view),
    )
    return replace(blueprint, names=_names(family, outline(blueprint, checkpoint), view, blueprint.constants))


def _settings(kind: str, family: Family, view: View, config: Mapping[str, object]) -> dict[str, Any]:
    """The arguments of our own config object, every one checked."""
    if config.get("model_type") != kind or config.get("architectures") not in (None, [family.architecture]):
        raise hf_config.contradiction(
            "model_type or architectures", f"is not that of {family.architecture}, as the tensors are"
        )
    read = {key: reader(config, key) for key, reader in (EVERY | dict(family.keys)).items()}
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
    for key in ("num_stages", "num_hidden_layers") if "num_stages" in read else ():  # two names of one setting
        if config.get(key, read["num_stages"]) != len(read["depths"]):
            raise hf_config.contradiction(key, "is not the number of depths")
    return read | dict(family.fixed)


def _make(family: Family, settings: Mapping[str, Any]) -> nn.Module:
    import transformers  # slow to import, and only needed here

    config = getattr(transformers, f"{family.name}Config")(**settings)
    model = getattr(transformers, family.architecture)(config)
    return hf_config.Logits(model, settings["image_size"] if family.one_size else None)


# ---- names ----


def _names(family: Family, module: nn.Module, view: View, derived: Mapping[str, object]) -> dict[str, str]:
    """Module tensor name -> checkpoint tensor name; a tensor the module lacks keeps its own, for `compare` to name."""
    ours = module.state_dict().keys()
    names: dict[str, str] = {}
    for short, info in view.tensors.items():
        if info.name in derived:
            continue
        name, newer = f"model.{short}", f"model.{_newer(family, short)}"
        name = newer if name not in ours and newer in ours else name
        if name in names:
            both = f"`{clean(names[name], 80)}` and `{clean(info.name, 80)}`"
            raise CheckpointError(f"{both} name one tensor, and a loader takes either; export the checkpoint again")
        names[name] = info.name
    return names


def _newer(family: Family, name: str) -> str:
    for old, new in family.older:
        name = name.replace(old, new)
    return name
