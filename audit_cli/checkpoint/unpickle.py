"""The child process of `convert`: reads one pickle with the weights-only loader and writes one safetensors file.

Run by path as `python -I unpickle.py JOB`, where JOB is a JSON object of `_Job`'s fields; it imports nothing of this
package. The answer goes to `report`, as {"ok": …} or {"error": …}; its reader must trust neither it nor the output.
The loader alone should keep a hostile pickle from running code; the limits here are for the day it does not.
"""

from __future__ import annotations

import ctypes
import json
import resource
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Keys of a training checkpoint that hold tensors but are never the network.
_NOT_WEIGHTS = frozenset(
    ("optimizer", "optimizer_state_dict", "optim", "scheduler", "lr_scheduler", "scaler", "grad_scaler", "amp")
)
_NESTING = 3  # {"model": {"state_dict": …}} is as deep as people go
_MEMORY = 2 * 2**30  # bytes of address space beyond the imported libraries and the tensors themselves
_NEW_USER, _NEW_NET, _NO_NEW_PRIVILEGES = 0x10000000, 0x40000000, 38  # linux/sched.h, linux/prctl.h


@dataclass(frozen=True)
class _Job:
    source: str
    output: str
    report: str
    key: str | None  # dotted path of the state dict inside the pickle; None to look for it
    seconds: int


class Refused(Exception):
    """Why the conversion stops, in the user's words."""


def main() -> None:
    job = _Job(**json.loads(sys.argv[1]))
    size = Path(job.source).stat().st_size
    _leave_the_network()
    import torch  # before the limits: its shared libraries alone map gigabytes
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    _limit(job.seconds, size)
    try:
        weights, key = _state_dict(_read(job.source), job.key)
        tensors, dropped, prefix = _clean(weights, 4 * size + 2**20)
        save_file(tensors, job.output, metadata={"format": "pt"})  # one key only: their order is random
        answer: dict[str, object] = {"ok": {"key": key, "prefix": prefix, "dropped": dropped, "tensors": len(tensors)}}
    except Refused as refusal:
        answer = {"error": str(refusal)}
    except Exception as error:  # noqa: BLE001 - the file is hostile, any error is a refusal
        answer = {"error": f"it cannot be read ({type(error).__name__}: {str(error)[:300]})"}
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            answer = {"error": "it unpacks to far more than its own size"}
    Path(job.report).write_text(json.dumps(answer), encoding="utf-8")


def _leave_the_network() -> None:
    """Best effort: an empty network namespace, and no gain of rights through exec. Linux only; elsewhere go on."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if libc.unshare(_NEW_NET) != 0:  # needs root; a user namespace of its own does not
        libc.unshare(_NEW_USER | _NEW_NET)


def _limit(seconds: int, size: int) -> None:
    def lower(what: int, value: int) -> None:
        hard = resource.getrlimit(what)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(what, (value, value))

    lower(resource.RLIMIT_CORE, 0)
    lower(resource.RLIMIT_CPU, seconds)
    lower(resource.RLIMIT_FSIZE, 4 * size + 2**26)
    lower(resource.RLIMIT_NOFILE, 64)
    lower(resource.RLIMIT_NPROC, 0)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        lower(resource.RLIMIT_AS, pages * resource.getpagesize() + 8 * size + _MEMORY)


def _read(source: str) -> object:
    import pickle
    import re
    import warnings

    import torch

    warnings.simplefilter("ignore")
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|function|class) ([\w.<>]+)", str(error))
        if asked is None:
            first = str(error).partition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
            raise Refused(f"weights-only loading does not allow what the pickle does ({first[:120]})") from error
        raise Refused(f"the pickle asks for `{asked[1]}`, which weights-only loading does not allow") from error


def _state_dict(loaded: object, key: str | None) -> tuple[Mapping[str, Any], str]:
    """The mapping that holds the weights, and its dotted path ("" for the pickle itself)."""
    if not isinstance(loaded, Mapping):
        raise Refused(f"it holds a {type(loaded).__name__}, not a state dict")
    found = dict(_mappings(loaded, "", _NESTING))
    if key is not None:
        if key not in found:
            raise Refused(f"it has no state dict under `{key}`; those with tensors are: {_listed(found)}")
        return found[key], key
    likely = {path: value for path, value in found.items() if path.split(".")[-1] not in _NOT_WEIGHTS}
    if len(likely) > 1 and all(tensor.ndim == 0 for tensor in _tensors(likely.get("", {})).values()):
        likely.pop("", None)  # {"state_dict": …, "best_accuracy": tensor(0.9)}
    if not likely:
        raise Refused("it holds no tensors under string keys")
    if len(likely) > 1:
        raise Refused(f"several state dicts are in it ({_listed(likely)}); choose one with --key")
    path, value = next(iter(likely.items()))
    return value, path


def _mappings(value: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping that directly holds a tensor under a string key, with its dotted path."""
    if _tensors(value):
        yield path, value
    if depth:
        for key, item in value.items():
            if isinstance(key, str) and isinstance(item, Mapping) and key not in _NOT_WEIGHTS:
                yield from _mappings(item, f"{path}.{key}" if path else key, depth - 1)


def _tensors(value: Mapping[Any, Any]) -> dict[str, Tensor]:
    import torch

    return {key: item for key, item in value.items() if isinstance(key, str) and isinstance(item, torch.Tensor)}


def _clean(weights: Mapping[str, Any], budget: int) -> tuple[dict[str, Tensor], list[str], str]:
    """Contiguous tensors that share no memory, what was left out, and the prefix that was taken off every name."""
    import torch

    tensors = _tensors(weights)
    dropped = [str(key) for key in weights if key not in tensors]
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_complex():
            raise Refused(f"tensor `{name}` is sparse, quantised, complex or without data")
        budget -= tensor.numel() * tensor.element_size()
        if budget < 0:  # a view with stride 0 can claim any shape
            raise Refused("its tensors are far larger than the file")
        kept[name.removeprefix(prefix)] = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.detach())
    return kept, dropped, prefix


def _listed(found: Mapping[str, object]) -> str:
    return ", ".join(path or "(top level)" for path in list(found)[:8])


if __name__ == "__main__":
    main()
