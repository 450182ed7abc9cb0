"""The user's own architecture, by explicit choice: `--arch`.

Four forms: `torchvision:resnet18` and `timm:nasnetalarge` (built by those libraries, without their weights),
`package.module:factory` (an installed module) and `path/to/file.py:factory`. The factory takes no arguments and returns
the untrained module; logits over normalised images. This is the one place where code other than ours runs, so it may
never come from the audited folder.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from audit_cli.checkpoint import Checkpoint
from audit_cli.classifier import Classifier
from audit_cli.errors import AuditError, CheckpointError, UnsupportedError, UsageError
from audit_cli.models.blueprint import Blueprint, View, assemble, classifier, compare, fill, views
from audit_cli.report.sanitise import clean

_FORMS = "expected torchvision:NAME, timm:NAME, package.module:factory or path/to/file.py:factory"
_SIDES = (32, 224)  # image sides tried first: a network that takes both takes any
_OTHER_SIDES = (64, 96, 128, 160, 192, 256, 299, 384, 448, 512, 28)


def build(checkpoint: Checkpoint, arch: str, *, mean: Sequence[float], std: Sequence[float]) -> Classifier:
    """The classifier that `arch` names, with the checkpoint's weights.

    Raises UsageError when `arch` cannot be resolved, CheckpointError when the weights do not fit it, UnsupportedError
    when no linear layer of it makes the logits.
    """
    place, colon, name = arch.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"--arch {clean(arch)}: {_FORMS}")
    if place == "torchvision":
        return assemble(_torchvision(checkpoint, name), checkpoint, mean=mean, std=std)
    if place == "timm":
        return assemble(_timm(checkpoint, name), checkpoint, mean=mean, std=std)
    factory = getattr(_import(place, checkpoint), name, None)
    if not callable(factory):
        raise UsageError(f"--arch {clean(arch)}: {clean(place)} has no function `{clean(name, 60)}`")
    module = _call(factory, arch).eval()
    view = _view(module, checkpoint)
    trial = Blueprint(arch, lambda: module, "", view.names(), mismatch=CheckpointError)
    compare(module, trial, checkpoint)
    fill(module, trial, checkpoint)
    head, size = _probe(module, arch)
    return classifier(module, Blueprint(arch, lambda: module, head, view.names(), size), mean, std)


def _torchvision(checkpoint: Checkpoint, name: str) -> Blueprint:
    """torchvision's network `name`, with as many classes as the checkpoint's head has."""
    from torchvision import models

    if name not in models.list_models(module=models):  # without detection and segmentation, which fetch a backbone
        raise UsageError(f"--arch torchvision:{clean(name, 60)}: torchvision has no such image classifier")
    with torch.device("meta"):
        whole = models.get_model(name, weights=None)
    linear = [path for path, layer in whole.named_modules() if isinstance(layer, nn.Linear)]
    return _named(checkpoint, f"torchvision:{name}", partial(models.get_model, name, weights=None), whole, linear[-1:])


def _timm(checkpoint: Checkpoint, name: str) -> Blueprint:
    """timm's network `name`, with as many classes as the checkpoint's head has."""
    try:
        import timm
    except ImportError as error:
        raise UsageError(
            f"--arch timm:{clean(name, 60)}: timm is not installed; pip install audit-cli[timm]"
        ) from error
    if not timm.is_model(name):  # so that no name leads to a file or to the network
        raise UsageError(f"--arch timm:{clean(name, 60)}: timm has no such model")
    make = partial(timm.create_model, name, pretrained=False)
    with torch.device("meta"):
        whole = make(num_classes=2)  # some come without a head unless told
    head = [path for path, layer in whole.named_modules() if layer is whole.get_classifier()]
    return _named(checkpoint, f"timm:{name}", make, whole, head, whole.pretrained_cfg.get("input_size", (3, 224, 224)))


def _named(
    checkpoint: Checkpoint,
    arch: str,
    make: Callable[..., nn.Module],
    whole: nn.Module,
    head: list[str],
    size: Sequence[int] = (3, 224, 224),
) -> Blueprint:
    """A library's network. make: takes num_classes. whole: it on the meta device. head: [its last linear layer]."""
    view = _view(whole, checkpoint)
    if not head or not isinstance(whole.get_submodule(head[0]), nn.Linear):
        raise UnsupportedError(f"--arch {arch}: has no single linear head to audit; pass a factory of your own")
    if len(view.shape(f"{head[0]}.weight")) != 2:
        raise CheckpointError(f"{clean(str(checkpoint.source))}: has no `{head[0]}.weight`, the head of {arch}")
    make = partial(make, num_classes=view.shape(f"{head[0]}.weight")[0])
    return Blueprint(
        arch,
        make,
        head[0],
        view.names(),
        size=(size[-2], size[-1]),
        mismatch=CheckpointError,
        complete=partial(_complete, make),
    )


def _complete(make: Callable[[], nn.Module], module: nn.Module) -> None:
    """Gives buffers that no file holds their values: those of a second, real module, whose weights are dropped."""
    left = [name for name, tensor in module.named_buffers() if tensor.is_meta and name not in module.state_dict()]
    if left:
        real = make()
        for name in left:
            owner, _, buffer = name.rpartition(".")
            module.get_submodule(owner).register_buffer(buffer, real.get_buffer(name), persistent=False)


def _view(module: nn.Module, checkpoint: Checkpoint) -> View:
    """The checkpoint under the names that fit `module` best: with or without prefixes that all tensors share."""
    expected = module.state_dict().keys()
    return max(views(checkpoint), key=lambda view: len(expected & view.tensors.keys()))


def _import(place: str, checkpoint: Checkpoint) -> ModuleType:
    """The module or file `place`, after making sure that it does not lie in the audited folder."""
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise UsageError(f"--arch {clean(place)}: no such file; {_FORMS}")
        _refuse_inside(path, checkpoint, place)
        spec = importlib.util.spec_from_file_location(f"_audit_cli_arch_{path.stem}", path.resolve())
    else:
        try:
            top = importlib.util.find_spec(place.partition(".")[0])  # finds it without running it
        except (ImportError, ValueError):
            top = None
        if top is None:
            raise UsageError(f"--arch {clean(place)}: no such installed module; {_FORMS}")
        for origin in [top.origin, *(top.submodule_search_locations or ())]:
            if origin is not None:
                _refuse_inside(Path(origin), checkpoint, place)
        spec = None
    try:
        if spec is None or spec.loader is None:
            return importlib.import_module(place)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"--arch {clean(place)}: cannot be imported ({_said(error)})") from error
    return module


def _refuse_inside(path: Path, checkpoint: Checkpoint, place: str) -> None:
    folder = checkpoint.source.resolve()
    if folder.is_dir() and path.resolve().is_relative_to(folder):
        raise UsageError(f"--arch {clean(place)}: lies in the audited model folder; move it out once you have read it")


def _call(factory: Callable[[], object], arch: str) -> nn.Module:
    try:
        module = factory()
    except Exception as error:
        raise UsageError(f"--arch {clean(arch)}: the factory failed ({_said(error)}); it takes no arguments") from error
    if not isinstance(module, nn.Module):
        raise UsageError(f"--arch {clean(arch)}: the factory returned {type(module).__name__}, not a torch.nn.Module")
    return module


def _probe(module: nn.Module, arch: str) -> tuple[str, tuple[int, int] | None]:
    """Head and image size, found by running two random images.

    The head is the last linear layer, in order of registration, for which head(latents(x)) is what the module returns.
    """
    linear = [path for path, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UnsupportedError(f"--arch {clean(arch)}: has no linear layer, so no head to audit")
    sides = [side for side in _SIDES if _runs(module, side) is None]
    sides = sides or [side for side in _OTHER_SIDES if _runs(module, side) is None][:1]
    if not sides:
        error = _runs(module, 224)
        raise UsageError(
            f"--arch {clean(arch)}: cannot classify RGB images of any usual size ({clean(str(error), 120)})"
        )
    images = _images(sides[0])
    with torch.no_grad():
        logits = module(images)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise UsageError(f"--arch {clean(arch)}: forward(x) must return logits (N, classes)")
        for path in reversed(linear):
            if _makes(module, path, images, logits):
                return path, (sides[0], sides[0]) if len(sides) == 1 else None
    raise UnsupportedError(
        f"--arch {clean(arch)}: no linear layer gives the logits; head(latents(x)) must be forward(x)"
    )


def _makes(module: nn.Module, path: str, images: Tensor, logits: Tensor) -> bool:
    try:
        again, latents = Classifier(module, path, arch="").outputs(images)
        head = module.get_submodule(path)
        return (
            again.shape == logits.shape
            and torch.allclose(again, logits, rtol=1e-3, atol=1e-4, equal_nan=True)
            and torch.allclose(head(latents), logits, rtol=1e-3, atol=1e-4, equal_nan=True)
        )
    except (AuditError, RuntimeError, TypeError):
        return False


def _runs(module: nn.Module, side: int) -> Exception | None:
    try:
        with torch.no_grad():
            module(_images(side))
    except Exception as error:  # noqa: BLE001 - the user's code may raise anything
        return error
    return None


def _images(side: int) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def _said(error: Exception) -> str:
    return clean(f"{type(error).__name__}: {error}", 160)
