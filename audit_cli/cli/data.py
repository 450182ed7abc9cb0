"""`data check`: look at a trusted set without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from audit_cli.cli.console import emit, say

INCONCLUSIVE = 3


def check(
    data: Annotated[Path, typer.Argument(help="ImageFolder, .npz archive, parquet or CIFAR python batches.")],
    split: Annotated[str, typer.Option(help="Which split of a source that has several.")] = "test",
    per_class: Annotated[int | None, typer.Option(help="Read at most so many images of every class.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Draws the images that --per-class keeps.", min=0)] = 0,
    min_images: Annotated[int, typer.Option(help="Fewer images in total are a problem.", min=1)] = 100,
    min_per_class: Annotated[int, typer.Option(help="Fewer images of a class are a problem.", min=1)] = 5,
) -> int:
    """Is the trusted set too small, mislabelled, out of range? JSON on stdout; 0 nothing found, 3 a problem."""
    from audit_cli.data.check import check as examine
    from audit_cli.data.readers import read_images

    report = examine(
        read_images(data, split=split, per_class=per_class, seed=seed),
        min_images=min_images,
        min_per_class=min_per_class,
    )
    emit(json.dumps(report.document, indent=2))
    for kind, remarks in (("problem", report.problems), ("warning", report.warnings)):
        for remark in remarks:
            say(f"{kind}: {remark}")
    return INCONCLUSIVE if report.problems else 0
