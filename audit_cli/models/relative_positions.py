"""Swin's and BEiT's relative positions: an index that follows from the window alone, in files or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from audit_cli.errors import CheckpointError
from audit_cli.models.blueprint import View
from audit_cli.report.sanitise import clean

INDEX, TABLE = "relative_position_index", "relative_position_bias_table"


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


def complete(module: nn.Module) -> None:
    """Swin's index is a buffer that files no longer hold."""
    for part in module.modules():
        index = getattr(part, INDEX, None)
        if isinstance(index, Tensor):
            setattr(part, INDEX, relative_index(math.isqrt(math.isqrt(index.numel()))).view(index.shape))


def constants(view: View) -> dict[str, Callable[[], Tensor]]:
    """The index tensors that older files hold beside their bias table, and what must be in them."""
    found: dict[str, Callable[[], Tensor]] = {}
    for name, info in view.tensors.items():
        if name.endswith(f".{INDEX}"):
            rows = (view.shape(name.removesuffix(INDEX) + TABLE) or (0,))[0]
            cls = math.isqrt(rows) ** 2 != rows
            window = (math.isqrt(rows - 3 if cls else rows) + 1) // 2 if rows > 3 or not cls else 0
            pairs = (window**2 + 1) ** 2 if cls else window**4
            if math.prod(info.shape) != pairs or info.dtype != "I64":
                raise CheckpointError(f"`{clean(info.name, 60)}` does not fit its bias table; export the model again")
            found[info.name] = partial(relative_index, window, cls)
    return found
