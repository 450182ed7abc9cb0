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
from audit_cli.errors import UnsupportedError
from audit_cli.models import cifar_resnet, custom, hf_resnet, resnet
from audit_cli.models.blueprint import REMEDY, Blueprint, View, assemble, check, views
from audit_cli.report.sanitise import clean

MODELS: Mapping[str, Callable[[View, Checkpoint], Blueprint | None]] = {
    "resnet": resnet.recognise,
    "cifar_resnet": cifar_resnet.recognise,
    "hf_resnet": hf_resnet.recognise,
}


def build(
    checkpoint: Checkpoint,
    *,
    arch: str | None = None,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Classifier:
    """The classifier in `checkpoint`: float32, on the CPU, in eval mode, with the given normalisation.

    arch: None to recognise it, or what `custom.build` takes. Raises UnsupportedError when no family fits, and
    CheckpointError when the weights contradict the config or the architecture the user named.
    """
    if arch is not None:
        return custom.build(checkpoint, arch, mean=mean, std=std)
    return assemble(identify(checkpoint), checkpoint, mean=mean, std=std)


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
    raise UnsupportedError(f"{where}: no known architecture has these tensors ({names}, …{said}); {REMEDY}")


def state_for_checkpoint(classifier: Classifier, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The classifier's weights under the checkpoint's own names and dtypes, on the CPU: what a repair writes."""
    state = classifier.module.state_dict()
    return {
        original: state[name].detach().cpu().to(DTYPES[checkpoint.tensors[original].dtype]).contiguous()
        for name, original in classifier.names.items()
    }


__all__ = ["MODELS", "build", "identify", "state_for_checkpoint"]
