"""Networks the tool can rebuild from tensor names and shapes alone.

Nothing in the checkpoint is ever executed: a family reads the header (and, for Hugging Face, a few checked numbers of
the config) and this package builds the module from its own code. Adding a family: one file with `recognise`, one entry
here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from audit_cli.checkpoint import Checkpoint
from audit_cli.checkpoint.header import DTYPES
from audit_cli.classifier import Classifier
from audit_cli.errors import UnsupportedError, UsageError
from audit_cli.models import cifar_resnet, clip, custom, hf_image, hf_resnet, resnet
from audit_cli.models.blueprint import Blueprint, View, assemble, check, remedy, views
from audit_cli.models.prompts import Prompts
from audit_cli.report.sanitise import clean

MODELS: Mapping[str, Callable[[View, Checkpoint], Blueprint | None]] = {
    "resnet": resnet.recognise,
    "cifar_resnet": cifar_resnet.recognise,
    "clip": clip.recognise,
    "hf_resnet": hf_resnet.recognise,
    "hf_image": hf_image.recognise,
}


def build(
    checkpoint: Checkpoint,
    *,
    arch: str | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    prompts: Prompts | None = None,
    class_names: Sequence[str] = (),
    bare: bool = False,
) -> Classifier:
    """The classifier in `checkpoint`: float32, on the CPU, in eval mode, with the given normalisation.

    arch: None to recognise it, or what `custom.build` takes. prompts: what the user said of a CLIP model's classes;
    class_names: the labels of a CLIP model where the user gave none. bare: a CLIP model for which nobody has labels or
    prompts is taken as an `Encoder`. Raises UnsupportedError when no family fits,
    CheckpointError when the weights contradict the config or the architecture the user named, and UsageError for
    prompts that the model has no use for, or for a CLIP model without labels.
    """
    blueprint = identify(checkpoint) if arch is None else None
    if isinstance(blueprint, clip.DualEncoder):
        if bare and prompts is None and not class_names:
            return blueprint.encoder(checkpoint, mean=mean, std=std)
        named = (prompts or Prompts()).named(class_names)
        return blueprint.classifier(checkpoint, named, mean=mean, std=std)
    if prompts is not None:
        raise UsageError("--labels and --prompt are for CLIP models, and this is none; drop them")
    if blueprint is None:
        return custom.build(checkpoint, str(arch), mean=mean, std=std)
    return assemble(blueprint, checkpoint, mean=mean, std=std)


def identify(checkpoint: Checkpoint) -> Blueprint:
    """The architecture, told from the header and config and compared with every tensor; loads nothing."""
    for view in views(checkpoint):
        for recognise in MODELS.values():
            blueprint = recognise(view, checkpoint)
            if blueprint is not None:
                check(blueprint, checkpoint)
                return blueprint
    names = clean(", ".join(list(checkpoint.tensors)[:3]), 120)
    kind = (checkpoint.config or {}).get("model_type")
    said = f"; config.json says `{clean(str(kind), 40)}`" if kind else ""
    where = clean(str(checkpoint.source))
    raise UnsupportedError(f"{where}: no known architecture has these tensors ({names}, …{said}); {remedy(checkpoint)}")


def prompts_of(classifier: Classifier) -> Prompts | None:
    """The labels and templates that a zero-shot classifier was built with; None for any other."""
    return classifier.module.prompts if isinstance(classifier.module, clip.ZeroShot) else None


def state_for_checkpoint(classifier: Classifier, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The classifier's weights under the checkpoint's own names and dtypes, on the CPU: what a repair writes."""
    state = classifier.module.state_dict()
    return {
        original: state[name].detach().cpu().to(DTYPES[checkpoint.tensors[original].dtype]).contiguous()
        for name, original in classifier.names.items()
    }


__all__ = ["MODELS", "Prompts", "build", "identify", "prompts_of", "state_for_checkpoint"]
