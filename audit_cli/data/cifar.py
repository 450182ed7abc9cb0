"""CIFAR-10 and CIFAR-100 as published: Python pickles (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny
Images", 2009, https://www.cs.toronto.edu/~kriz/cifar.html).

A pickle is a program. Here only the instructions that build dictionaries, lists, text and numbers are admitted; the few
names that NumPy's pickles refer to are answered by inert stand-ins that note down what they are given, and anything
else is refused before it is called.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audit_cli.data.raw import Limits, RawImages, check_count, pick, read_bounded, shown
from audit_cli.errors import DataError

FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
SPLITS = {
    "test_batch": {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},  # CIFAR-10
    "meta": {"train": ["train"], "test": ["test"]},  # CIFAR-100
}
LABELS = ("fine_labels", "labels")
NAMES = {"batches.meta": "label_names", "meta": "fine_label_names"}
NAME_CAP = 1_000  # characters: a pickle may hold a long name once and list it very often

# Python 2 wrote the published files with protocols 0 and 2; Python 3 re-writes them with up to 4.
INSTRUCTIONS = """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT LONG LONG1 BININT BININT1 BININT2
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES UNICODE BINUNICODE SHORT_BINUNICODE
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
"""
OPCODES = frozenset(INSTRUCTIONS.split())
PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
GET = {"GET", "BINGET", "LONG_BINGET"}
IN_PLACE = {"APPEND", "SETITEM", "BUILD"}  # what they change stays on the stack


def find_cifar(root: Path) -> Path | None:
    """The folder that holds CIFAR batches: `root` itself or its published sub-folder; None when there is none."""
    for folder in (root, *(root / name for name in FOLDERS)):
        if any((folder / marker).is_file() for marker in ("test_batch", "data_batch_1")):
            return folder
        if all((folder / marker).is_file() for marker in ("train", "test", "meta")):
            return folder
    return None


def read_cifar(folder: Path, *, split: str, per_class: int | None, seed: int, limits: Limits) -> RawImages:
    """Read the batches of `split` ("train" or "test"). Raises DataError naming the file and the remedy."""
    kind = "meta" if (folder / "meta").is_file() else "test_batch"
    if split not in SPLITS[kind]:
        raise DataError(f"{shown(folder)}: no split `{shown(split)}`; CIFAR has train and test")
    batches = [_batch(folder / name, limits) for name in SPLITS[kind][split] if (folder / name).is_file()]
    if not batches:
        raise DataError(f"{shown(folder)}: no batch of the {split} split; choose the other with --split")
    pixels = np.concatenate([x for x, _ in batches])
    labels = np.concatenate([y for _, y in batches])
    names = _names(folder, limits)
    if names and labels.max(initial=-1) >= len(names):
        raise DataError(f"{shown(folder)}: label {labels.max()} but only {len(names)} class names")
    chosen = pick(labels, per_class, seed)
    check_count(len(chosen), limits, shown(folder))
    return RawImages.of(tuple(pixels[chosen]), labels[chosen], names, shown(folder))


@dataclass
class _Array:
    """Stand-in for an ndarray under reconstruction: keeps the state it is given."""

    state: tuple[Any, ...] = ()

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, tuple) else ()


@dataclass
class _Dtype:
    """Stand-in for numpy.dtype: keeps the type's code."""

    code: object = None

    def __setstate__(self, state: object) -> None:
        """Byte order and the like, which a one-byte type lacks."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _dtype(code: object = None, *_: object) -> _Dtype:
    return _Dtype(code)


def _encode(text: object = "", encoding: object = "latin1") -> bytes:
    """_codecs.encode as Python 3 uses it to write bytes with protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("_codecs.encode of something other than latin1 text")
    return text.encode("latin1")


@dataclass(frozen=True)
class _StandIn:
    """Answers a name in a pickle. The instruction BUILD cannot change it, as it could a function's attributes."""

    call: Callable[..., object]

    def __call__(self, *arguments: object) -> object:
        return self.call(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("state for something other than an array")


STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _StandIn(_reconstruct),
    ("numpy._core.multiarray", "_reconstruct"): _StandIn(_reconstruct),
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct
    ("numpy", "dtype"): _StandIn(_dtype),
    ("_codecs", "encode"): _StandIn(_encode),
}


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(f"refers to {module}.{name}")
        return STAND_INS[module, name]


def load_restricted(content: bytes, name: str) -> object:
    """The plain data in a pickle's bytes; arrays come as stand-ins. Raises DataError, having called nothing foreign."""
    try:
        _read_through(content)
        return _Restricted(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a malformed pickle may raise anything
        raise DataError(
            f"{name}: refused, not a CIFAR batch as published ({shown(str(error))}); get the original files again"
        ) from error


def _read_through(content: bytes) -> None:
    """Raises UnpicklingError at the first instruction that no CIFAR batch has; follows none.

    It keeps account of the stack, as far as telling tuples from the rest: as the key of a dictionary a tuple is hashed,
    which takes for ever where the same few tuples make it up over and over, and ends the interpreter where it is deep.
    """
    stack: list[bool] = []  # True for a tuple
    outside: list[list[bool]] = []  # what lay on the stack before each mark
    memo: dict[int, bool] = {}
    for opcode, argument, _ in pickletools.genops(content):
        name, takes = opcode.name, opcode.stack_before
        if name not in OPCODES:
            raise pickle.UnpicklingError(f"instruction {name}")
        if name in PUT and int(str(argument)) > len(content):
            raise pickle.UnpicklingError("a memo index that would exhaust memory")
        if name in PUT or name == "MEMOIZE":
            memo[int(str(argument)) if name in PUT else len(memo)] = stack[-1]
        elif name in GET:
            stack.append(memo[int(str(argument))])
        elif name == "MARK":
            outside.append(stack)
            stack = []
        else:
            if pickletools.markobject in takes:
                taken, stack = stack, outside.pop()
            else:
                taken = [stack.pop() for _ in takes][::-1]
            if any({"SETITEM": taken[1:2], "SETITEMS": taken[::2], "DICT": taken[::2]}.get(name, ())):
                raise pickle.UnpicklingError("a tuple as the key of a dictionary")
            if name in IN_PLACE:
                stack.append(taken[0])
            elif name not in ("APPENDS", "SETITEMS"):
                stack += [after is pickletools.pytuple for after in opcode.stack_after]


def _batch(path: Path, limits: Limits) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels (N, 32, 32, 3) and labels (N,) of one batch file."""
    content = _dictionary(path, limits)
    labels = next((content[key] for key in LABELS if key in content), None)
    state = getattr(content.get("data"), "state", None)
    if not isinstance(labels, list) or not all(type(y) is int and 0 <= y < limits.classes for y in labels):
        expected = f"no list of labels from 0 to {limits.classes - 1}"
        raise DataError(f"{shown(path)}: {expected}; get the original CIFAR files again")
    if not isinstance(state, tuple) or len(state) != 5:
        raise DataError(f"{shown(path)}: no array `data`; get the original CIFAR files again")
    _, shape, dtype, fortran, data = state
    code = getattr(dtype, "code", None)
    sound = code in (b"u1", "u1") and shape == (len(labels), 3072) and isinstance(data, bytes)
    if not sound or len(data) != math.prod(shape):
        raise DataError(
            f"{shown(path)}: `data` is not uint8 of shape ({len(labels)}, 3072); get the original files again"
        )
    pixels = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, dtype=np.int64)


def _names(folder: Path, limits: Limits) -> tuple[str, ...]:
    """Class names from the meta file, or none."""
    for file, key in NAMES.items():
        if (folder / file).is_file():
            names = _dictionary(folder / file, limits).get(key)
            if not isinstance(names, list) or not all(isinstance(name, str | bytes) for name in names):
                raise DataError(f"{shown(folder / file)}: no list `{key}`; get the original CIFAR files again")
            if len(names) > limits.classes or any(len(name) > NAME_CAP for name in names):
                problem = f"more than {limits.classes} names in `{key}`, or one of over {NAME_CAP} characters"
                raise DataError(f"{shown(folder / file)}: {problem}; get the original CIFAR files again")
            return tuple(name if isinstance(name, str) else name.decode("utf-8", "replace") for name in names)
    return ()


def _dictionary(path: Path, limits: Limits) -> dict[str, Any]:
    """The dictionary in a pickle file, keys as text (Python 2 wrote them as bytes)."""
    content = load_restricted(read_bounded(path, limits.archive_bytes), shown(path))
    if not isinstance(content, dict):
        raise DataError(f"{shown(path)}: holds no dictionary; get the original CIFAR files again")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}
