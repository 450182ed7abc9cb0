"""Evidence a person can look at: the recovered trigger, and what it does to trusted images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from audit_cli.checkpoint.save import write_atomically
from audit_cli.types import NO_CLASS, Finding, Trigger, TrustedData

EXAMPLES = 8  # images per picture
TILE = 96  # pixels of a tile's shorter side, at least
GAP = 4  # pixels between tiles


def picture(trigger: Trigger, trusted: TrustedData) -> bytes:
    """A PNG of three rows: trusted images, the same with the trigger, and the change scaled to full range.

    The left column shows the trigger alone, stamped on mid grey, black and white.
    """
    others = torch.nonzero(trigger.meant_for(trusted.labels)).flatten()
    spread = torch.linspace(0, len(others) - 1, min(EXAMPLES, len(others))).long()
    clean = trusted.images[others[spread]]
    stamped = trigger(clean)
    change = stamped - clean
    change = 0.5 + change / (2 * change.abs().amax().clamp(min=1e-6))
    shades = torch.tensor([0.5, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, *trusted.shape)
    alone = trigger(shades)
    rows = [torch.cat([alone[k : k + 1], row]) for k, row in enumerate((clean, stamped, change))]
    buffer = io.BytesIO()
    Image.fromarray(_grid(rows)).save(buffer, format="PNG")
    return buffer.getvalue()


def save_pictures(findings: Sequence[Finding], trusted: TrustedData, folder: Path, most: int = 2) -> list[Finding]:
    """The findings, those about the `most` smallest triggers of each family with `evidence` set to a new picture.

    Pictures are named `<family>-class-<target>.png` in `folder`, `any` where no class is known; the folder is made when
    missing, and `evidence` is the path from its parent, where the verdict is expected.
    """
    pictured: dict[tuple[str, int], str] = {}
    for family in {f.family for f in findings if f.trigger}:
        ranked = sorted((f for f in findings if f.trigger and f.family == family), key=lambda f: f.score, reverse=True)
        for finding in [f for f in ranked if f.rule_id == ranked[0].rule_id][:most]:
            assert finding.trigger is not None  # noqa: S101 - filtered above
            folder.mkdir(parents=True, exist_ok=True)
            target = finding.trigger.target
            name = f"{family}-class-{'any' if target == NO_CLASS else target}.png"
            write_atomically(folder / name, picture(finding.trigger, trusted))
            pictured[family, target] = f"{folder.name}/{name}"
    return [
        replace(f, evidence=pictured.get((f.family, f.trigger.target))) if f.trigger is not None else f
        for f in findings
    ]


def _grid(rows: list[Tensor]) -> NDArray[np.uint8]:
    """Rows of images (n, 3, H, W) in [0, 1] -> one picture (H', W', 3) uint8; pixels are enlarged, not smoothed."""
    scale = max(1, TILE // min(rows[0].shape[-2:]))
    lines = []
    for row in rows:
        tiles = F.interpolate(row.detach().float().cpu(), scale_factor=scale, mode="nearest")
        tiles = F.pad(tiles, (0, GAP, 0, GAP), value=1.0)
        lines.append(torch.cat(list(tiles), dim=2))
    image = torch.cat(lines, dim=1).clamp(0, 1).mul(255).round().byte()
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy(), dtype=np.uint8)
