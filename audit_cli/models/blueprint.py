"""From a checked header to a loaded classifier, the same way for every family.

A family reads tensor names and shapes and answers with a `Blueprint`. The module is first made on the meta device,
where it costs no memory; only when every tensor agrees with the header are weights loaded, so what is allocated is
bounded by the size of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from audit_cli.checkpoint import Checkpoint, TensorInfo
from audit_cli.checkpoint.header import DTYPES
from audit_cli.classifier import Classifier
from audit_cli.errors import AuditError, CheckpointError, UnsupportedError
from audit_cli.report.sanitise import clean

REMEDY = "pass --arch package.module:factory"


@dataclass(frozen=True)
class Blueprint:
    """How to build one network.

    arch: a printable name. make: builds the module on the current default device. head: dotted name of the last linear
    layer. names: module tensor name -> checkpoint tensor name. size: the (H, W) it was made for, None for any.
    mismatch: the error when module and header disagree: the architecture is unknown, or (where a config or the user
    named it) the input contradicts itself. complete: gives the compared module the buffers that follow from its
    architecture and are in no checkpoint. constants: checkpoint tensors that are such buffers all the same -> their
    value, flat; the module computes its own, so another value in the file is an error.
    """

    arch: str
    make: Callable[[], nn.Module]
    head: str
    names: Mapping[str, str]
    size: tuple[int, int] | None = None
    labels: tuple[str, ...] = ()
    mismatch: type[AuditError] = UnsupportedError
    complete: Callable[[nn.Module], None] = lambda module: None
    constants: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)

    def text_side(self, checkpoint: Checkpoint) -> str | None:
        """One line about the text tower and its tokenizer; None for a network that has none."""
        return None


MOST_WRAPPERS = 8  # names that wrap a network; each keeps a copy of all names


@dataclass(frozen=True)
class View:
    """The tensors of a checkpoint under shorter names: short name -> TensorInfo (which keeps the checkpoint's name)."""

    tensors: Mapping[str, TensorInfo]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of `name`, () when there is no such tensor."""
        return self.tensors[name].shape if name in self.tensors else ()

    def names(self) -> dict[str, str]:
        return {short: info.name for short, info in self.tensors.items()}

    def renamed(self, rename: Callable[[str], str]) -> View:
        """Every name through `rename`; unchanged where two names would fall together."""
        tensors = {rename(name): info for name, info in self.tensors.items()}
        return View(tensors) if len(tensors) == len(self.tensors) else self


def views(checkpoint: Checkpoint) -> list[View]:
    """The tensors as they are, then without each leading name that all share (`module.`, `state_dict.`, `model.` …),
    up to `MOST_WRAPPERS` of them."""
    found = [View(checkpoint.tensors)]
    for _ in range(MOST_WRAPPERS):
        names = list(found[-1].tensors)
        first, dot, _ = names[0].partition(".")
        if not dot or not all(name.startswith(first + dot) for name in names):
            break
        found.append(View({name.removeprefix(first + dot): info for name, info in found[-1].tensors.items()}))
    return found


def remedy(checkpoint: Checkpoint) -> str:
    """What to pass instead of having the network recognised, with the name in a config.json of timm's."""
    name = (checkpoint.config or {}).get("architecture")  # timm's own config.json has this key
    return f"{REMEDY}, or --arch timm:{clean(name, 60)}" if isinstance(name, str) else REMEDY


def check(blueprint: Blueprint, checkpoint: Checkpoint) -> nn.Module:
    """The module on the meta device, when the header agrees with it; raises `blueprint.mismatch` when not."""
    module = outline(blueprint, checkpoint)
    compare(module, blueprint, checkpoint)
    return module


def outline(blueprint: Blueprint, checkpoint: Checkpoint) -> nn.Module:
    """The module on the meta device, compared with nothing yet; raises `blueprint.mismatch` when it cannot be made."""
    try:
        with torch.device("meta"):
            return blueprint.make().eval()
    except (RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        reason = clean(str(error), 120)
        raise blueprint.mismatch(
            f"{_where(checkpoint)}: {blueprint.arch} cannot be built ({reason}); {REMEDY}"
        ) from error


def compare(module: nn.Module, blueprint: Blueprint, checkpoint: Checkpoint) -> None:
    """Raise `blueprint.mismatch` naming the first tensors that are missing, unexpected or of another shape."""
    expected = module.state_dict()
    problems = [f"no `{name}`" for name in expected if name not in blueprint.names and not _optional(name)]
    for name, original in blueprint.names.items():
        info = checkpoint.tensors[original]
        if name not in expected:
            problems.append(f"unexpected `{original}`")
        elif tuple(expected[name].shape) != info.shape:
            problems.append(f"`{original}` is {list(info.shape)}, expected {list(expected[name].shape)}")
        elif expected[name].is_floating_point() and not DTYPES[info.dtype].is_floating_point:
            problems.append(f"`{original}` is {info.dtype}, expected floating point")
    if problems:
        few = clean("; ".join(problems[:3]), 240) + (f"; {len(problems) - 3} more" if len(problems) > 3 else "")
        raise blueprint.mismatch(f"{_where(checkpoint)}: does not fit {blueprint.arch}: {few}; {REMEDY}")


def fill(module: nn.Module, blueprint: Blueprint, checkpoint: Checkpoint) -> nn.Module:
    """The compared `module` with the checkpoint's weights, floating point as float32, in eval mode on the CPU."""
    blueprint.complete(module)
    loaded = checkpoint.load()
    for original, value in blueprint.constants.items():
        if not torch.equal(loaded[original].flatten().long(), value()):
            raise CheckpointError(
                f"{_where(checkpoint)}: `{clean(original, 60)}` is not what {blueprint.arch} computes; do not use it"
            )
    state: dict[str, Tensor] = {}
    for name, like in module.state_dict().items():
        if name in blueprint.names:
            # A copy, for the loaded tensor may be a view of the private file, which is about to go.
            dtype = torch.float32 if like.is_floating_point() else like.dtype
            state[name] = loaded[blueprint.names[name]].to(dtype, copy=True)
        else:
            state[name] = torch.zeros(like.shape, dtype=like.dtype)
    module.load_state_dict(state, assign=True)
    return module.float().eval()


def assemble(
    blueprint: Blueprint,
    checkpoint: Checkpoint,
    *,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
) -> Classifier:
    """The classifier that `blueprint` and the checkpoint's weights make."""
    module = fill(check(blueprint, checkpoint), blueprint, checkpoint)
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    if left:
        raise CheckpointError(f"{_where(checkpoint)}: {blueprint.arch} leaves `{left[0]}` without a value; {REMEDY}")
    return classifier(module, blueprint, mean, std)


def classifier(module: nn.Module, blueprint: Blueprint, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    whole = Classifier(
        module,
        blueprint.head,
        arch=blueprint.arch,
        mean=mean,
        std=std,
        size=blueprint.size,
        labels=blueprint.labels,
        names=blueprint.names,
    )
    return whole.eval()


def _optional(name: str) -> bool:
    """BatchNorm's step counter came with PyTorch 0.4.1 and means nothing in eval mode; older files lack it."""
    return name.endswith("num_batches_tracked")


def _where(checkpoint: Checkpoint) -> str:
    return clean(str(checkpoint.source))
