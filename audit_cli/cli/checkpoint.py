"""`inspect` and `convert`: what a checkpoint is, without running anything in it, and how a pickle stops being one."""

from __future__ import annotations

import json
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from audit_cli.cli.scan import AllowDownload, Model

if TYPE_CHECKING:
    from audit_cli.checkpoint import Checkpoint

_METADATA_SHOWN = 20  # entries; the map may be megabytes long


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


def inspect(
    model: Model,
    weights: Annotated[str | None, typer.Option(help="Which weights file, when the folder holds several.")] = None,
    allow_download: AllowDownload = False,
    form: Annotated[Format, typer.Option("--format", help="How to print it.")] = Format.TEXT,
) -> int:
    """What is in a checkpoint: architecture, tensors, digests, unaudited files. Loads no weights, executes nothing."""
    from audit_cli.checkpoint import locate, open_checkpoint

    found = locate(model, weights, allow_download=allow_download)
    with open_checkpoint(found.path, weights=found.weights, origin=found.origin) as checkpoint:
        document = _describe(checkpoint)
    sys.stdout.write(_text(document) if form is Format.TEXT else json.dumps(document, indent=2) + "\n")
    return 0


def convert(
    source: Annotated[Path, typer.Argument(help="The PyTorch pickle (.pth, .pt, .bin …).")],
    destination: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    key: Annotated[str | None, typer.Option(help="Dotted path of the state dict, when there are several.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds the reading process may take.")] = 600.0,
) -> int:
    """Read a pickle with the weights-only loader, in a restricted process, and write its state dict as safetensors."""
    from audit_cli.checkpoint.convert import convert as run
    from audit_cli.report.sanitise import clean

    done = run(source, destination, key=key, force=force, timeout=timeout)
    line = f"wrote {clean(str(destination))}: {done.tensors} tensors"
    line += f" from `{done.key}`" if done.key else ""
    line += f", prefix `{done.prefix}` taken off" if done.prefix else ""
    line += f", left out what is no tensor: {clean(', '.join(done.dropped), 120)}" if done.dropped else ""
    sys.stderr.write(f"{line}; source sha256 {done.source_sha256}\n")
    return 0


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    """The answer as plain data; every string that the checkpoint supplied is sanitised."""
    from audit_cli.errors import UnsupportedError
    from audit_cli.models import identify
    from audit_cli.report.sanitise import clean

    arch, remark, text = None, None, None
    try:
        blueprint = identify(checkpoint)
        arch, text = blueprint.arch, blueprint.text_side(checkpoint)
    except UnsupportedError as error:
        remark = str(error)
    infos = checkpoint.tensors.values()
    metadata = list(checkpoint.metadata.items())[:_METADATA_SHOWN]
    return {
        "model": checkpoint.origin.name if checkpoint.origin else clean(str(checkpoint.source)),
        "arch": arch,
        "remark": remark,
        "text": text,
        "tensors": len(infos),
        "elements": sum(info.elements for info in infos),
        "bytes": checkpoint.total_bytes,
        "dtypes": dict(sorted(Counter(info.dtype for info in infos).items())),
        "files": [{"path": clean(file.path), "sha256": file.sha256, "bytes": file.bytes} for file in checkpoint.files],
        "manifest_digest": checkpoint.manifest_digest,
        "unaudited_files": [clean(name) for name in checkpoint.unaudited],
        "metadata": {clean(key, 60): clean(value) for key, value in metadata},
    }


def _text(document: dict[str, Any]) -> str:
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in document["dtypes"].items())
    lines = [
        f"model      {document['model']}",
        f"arch       {document['arch'] or 'unknown: ' + document['remark']}",
        *([f"text       {document['text']}"] if document["text"] else []),
        f"tensors    {document['tensors']} ({dtypes}), {document['elements']:,} elements, {document['bytes']:,} bytes",
        *(f"file       {file['sha256']}  {file['path']} ({file['bytes']:,} bytes)" for file in document["files"]),
        f"manifest   {document['manifest_digest']}",
        *(f"unaudited  {name}" for name in document["unaudited_files"]),
        *(f"metadata   {key}: {value}" for key, value in document["metadata"].items()),
    ]
    return "\n".join(lines) + "\n"
