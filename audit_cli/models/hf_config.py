"""The few values a family may take from an untrusted Hugging Face config.json, each checked, and the module's wrapper.

Whatever is not asked for here is ignored. A number must be of its own JSON type (true is no integer) and within bounds;
anything else is a CheckpointError that names the key, never its content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from audit_cli.errors import CheckpointError, UsageError

WIDTH_CAP = 65_536  # channels; no published image classifier is a tenth as wide
LIST_CAP = 8  # stages of a network
SIDE_CAP = 2_048  # pixels
ACTIVATIONS = (
    "relu",
    "gelu",
    "gelu_new",
    "gelu_pytorch_tanh",
    "quick_gelu",
    "silu",
    "swish",
    "hardswish",
    "leaky_relu",
    "relu6",
    "tanh",
)


class Logits(nn.Module):
    """A transformers classifier that answers with its logits alone. (N, 3, H, W) -> (N, classes).

    side: the only H and W it takes, None for any. Raises UsageError on images of another size.
    """

    def __init__(self, model: nn.Module, side: int | None = None) -> None:
        super().__init__()
        self.model = model
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if self.side is not None and (height, width) != (self.side, self.side):
            raise UsageError(f"the model takes {self.side}x{self.side} images, not {height}x{width}; pass --size")
        return cast(Tensor, self.model(pixel_values=x, return_dict=True).logits)


def integer(config: Mapping[str, object], key: str, default: int, *, low: int = 1, high: int = WIDTH_CAP) -> int:
    """The integer in low..high under `key`."""
    value = config.get(key, default)
    if type(value) is not int or not low <= value <= high:
        raise contradiction(key, f"is not an integer from {low} to {high}")
    return value


def integers(config: Mapping[str, object], key: str, default: list[int] | int, *, cap: int = LIST_CAP) -> list[int]:
    """The positive integer, or list of at most `cap` of them, under `key`, always as a list."""
    value = config.get(key, default)
    values = value if isinstance(value, list) and isinstance(default, list) else [value]
    if not 1 <= len(values) <= cap or not all(type(item) is int and 1 <= item <= WIDTH_CAP for item in values):
        raise contradiction(key, f"is not 1 to {cap} integers from 1 to {WIDTH_CAP}")
    return cast(list[int], values)


def number(config: Mapping[str, object], key: str, default: float, *, low: float = 0.0, high: float = 1e6) -> float:
    """The number in low..high under `key`; NaN is in no range."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise contradiction(key, f"is not a number from {low:g} to {high:g}")
    return float(value)


def side(config: Mapping[str, object], key: str, default: int) -> int:
    """The side of a square in pixels under `key`: an integer, or two that are equal."""
    value = config.get(key, default)
    sides = value if isinstance(value, list) and len(value) == 2 else [value, value]
    if not all(type(item) is int and 1 <= item <= SIDE_CAP for item in sides) or sides[0] != sides[1]:
        raise contradiction(key, f"is not the side of a square, an integer from 1 to {SIDE_CAP}")
    return cast(int, sides[0])


def choice(config: Mapping[str, object], key: str, allowed: tuple[object, ...], default: object) -> object:
    """The value under `key`, equal in value and type to one of `allowed`."""
    value = config.get(key, default)
    if not any(type(value) is type(item) and value == item for item in allowed):
        raise contradiction(key, f"is not one of {', '.join(map(str, allowed))}")
    return value


def labels(config: Mapping[str, object], classes: int) -> tuple[str, ...]:
    """Class names in logit order; () when the config has none or only the placeholders LABEL_0, LABEL_1 …

    The names are as untrusted as the file: every output cleans them.
    """
    mapping = config.get("id2label")
    if mapping is None:
        return ()
    if not isinstance(mapping, dict) or mapping.keys() != {str(number) for number in range(classes)}:
        raise contradiction("id2label", f"does not name classes 0 to {classes - 1}, which the weights have")
    names = tuple(mapping[str(number)] for number in range(classes))
    if not all(isinstance(name, str) for name in names):
        raise contradiction("id2label", "holds a name that is no string")
    return () if names == tuple(f"LABEL_{number}" for number in range(classes)) else names


def contradiction(key: str, what: str) -> CheckpointError:
    return CheckpointError(f"config.json: {key} {what}; correct it or pass --arch with a factory of your own")
