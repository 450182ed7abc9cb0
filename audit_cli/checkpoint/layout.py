"""Which files of a model are the model: one weights file or one shard index, and what lies beside them.

The shard index names files, and names are a way out of the directory: `../`, absolute paths, symlinks. Only bare names
are taken, and the real path must lie in the model folder, or in the `blobs` of the Hugging Face cache around it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from audit_cli.checkpoint.private import read_head
from audit_cli.checkpoint.sniff import foreign_format
from audit_cli.errors import CheckpointError, UsageError
from audit_cli.report.sanitise import clean

INDEX = ".safetensors.index.json"
SHARD_CAP = 1_024
_SHARED = ".huggingface-shared-blobs"  # how huggingface_hub marks that store
_ENTRY_CAP = 10_000  # files looked at in a model folder
_OTHER_WEIGHTS = re.compile(  # suffixes under which other tools look for weights
    r"\.(bin|pt|pth|th|ckpt|pkl|pickle|joblib|dill|ot|tar|zip|h5|hdf5|keras|pb|tflite|msgpack|npz|npy|pdparams|params"
    r"|onnx|gguf|ggml|mlmodel|engine|caffemodel)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Layout:
    """root: the folder, resolved. weights: the chosen weights file or index. beside: other weights at the top level.
    below: other weights deeper down, and links to folders. single: the user named a file, so `root` is merely where it
    lies.
    """

    root: Path
    weights: str
    beside: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    single: bool = False

    @property
    def sharded(self) -> bool:
        return self.weights.endswith(INDEX)


def find(path: Path, weights: str | None) -> Layout:
    """The layout of MODEL `path`. Raises CheckpointError when it is not clear which file is the model."""
    real = path.resolve()
    if not real.is_dir():
        if weights is not None and weights != path.name:
            raise UsageError(f"{clean(str(path))}: is a file, so --weights does not apply; drop it or give the folder")
        if path.name.endswith(INDEX):
            raise UsageError(f"{clean(str(path))}: is a shard index; give the folder it lies in")
        return Layout(real.parent, path.name, single=True)
    names = sorted(_top_level(real))
    indexes = [name for name in names if name.endswith(INDEX)]
    ours = [name for name in names if name.endswith(".safetensors")]
    others = [name for name in names if name not in ours and name not in indexes and _is_weights(real, name)]
    if weights is not None:
        chosen = weights
        member(real, weights)
    else:
        chosen = pick(names, str(path)) or ""
        if not chosen:
            raise CheckpointError(_nothing(path, others))
    return Layout(real, chosen, tuple(name for name in indexes + ours + others if name != chosen), _below(real))


def pick(names: Sequence[str], where: str) -> str | None:
    """Which of the top-level `names` is the model: the shard index, else the safetensors file; None without either.

    Raises CheckpointError when there are several.
    """
    indexes = [name for name in names if name.endswith(INDEX)]
    candidates = indexes or [name for name in names if name.endswith(".safetensors")]
    if len(candidates) > 1:
        raise CheckpointError(ambiguous(where, candidates))
    return candidates[0] if candidates else None


def named_like_weights(path: str) -> bool:
    """Has the file a name under which some tool looks for weights?"""
    return path.endswith((".safetensors", INDEX)) or bool(_OTHER_WEIGHTS.fullmatch(Path(path).suffix))


def unaudited(layout: Layout, used: Collection[str], *, named: bool) -> tuple[str, ...]:
    """Weights files of the folder that are not `used`. An error unless the caller `named` the file to audit."""
    beside = [name for name in layout.beside if name not in used]
    if beside and not named:
        raise CheckpointError(ambiguous(str(layout.root), [layout.weights, *beside]))
    return tuple(beside) + layout.below


def shards(weight_map: object, where: str) -> Mapping[str, str]:
    """The checked `weight_map` of a shard index: tensor name -> bare file name."""
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{clean(where)}: has no weight_map; export the checkpoint again")
    for file in weight_map.values():
        if not isinstance(file, str) or not bare(file) or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{clean(where)}: shard `{clean(str(file), 60)}` is not a bare .safetensors name; do not use this model"
            )
    if len(set(weight_map.values())) > SHARD_CAP:
        raise CheckpointError(f"{clean(where)}: more than {SHARD_CAP} shards; export the checkpoint again")
    return weight_map


def bare(name: str) -> bool:
    """Is `name` a file name and nothing more?"""
    return bool(name) and name not in {".", ".."} and not any(c in name for c in "/\\\0:") and name.isprintable()


def member(root: Path, name: str) -> Path:
    """The real path of `name` in the resolved folder `root`; CheckpointError when it leads anywhere else."""
    if not bare(name):
        raise CheckpointError(f"`{clean(name, 60)}`: not a bare file name; name a file at the top of the model folder")
    real = (root / name).resolve()
    homes = [root]
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        entry = root.parent.parent
        homes.append(entry / "blobs")  # the cache keeps files there and links to them from the snapshot
        if (entry.parent / "blobs" / _SHARED).is_file():
            homes.append(entry.parent / "blobs")  # or links from there to one store for all repositories
    if not any(real.is_relative_to(home) for home in homes):
        raise CheckpointError(f"{clean(name)}: is a link that leads out of the model folder; put the file itself there")
    return real


def _top_level(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        names = [entry.name for entry in entries if not entry.is_dir()]
    if len(names) > _ENTRY_CAP:
        raise CheckpointError(f"{clean(str(root))}: more than {_ENTRY_CAP} files; give the model its own folder")
    return names


def _is_weights(root: Path, name: str) -> bool:
    """By suffix, or by content: a pickle stays one under any name. Links out of the folder are not followed."""
    if _OTHER_WEIGHTS.fullmatch(Path(name).suffix):
        return True
    try:
        return foreign_format(read_head(member(root, name), name)) is not None
    except CheckpointError:
        return False


def _below(root: Path) -> tuple[str, ...]:
    """Weights files in subfolders, by suffix, and links to folders, which a loader follows; here nothing does.

    At most _ENTRY_CAP files are looked at.
    """
    found: list[str] = []
    seen = 0
    for folder, folders, files in os.walk(root):
        seen += len(files)
        if seen > _ENTRY_CAP:
            raise CheckpointError(f"{clean(str(root))}: more than {_ENTRY_CAP} files; give the model its own folder")
        links = [path for path in (Path(folder) / name for name in folders) if path.is_symlink()]
        found += [path.relative_to(root).as_posix() for path in links]
        if Path(folder) != root:
            paths = [Path(folder) / file for file in files]
            weights = [p for p in paths if p.suffix == ".safetensors" or _OTHER_WEIGHTS.fullmatch(p.suffix)]
            found += [p.relative_to(root).as_posix() for p in weights]
    return tuple(sorted(found))


def _nothing(path: Path, others: list[str]) -> str:
    if others:
        remedy = f"convert it first: audit-cli convert {clean(str(path / others[0]))} OUT.safetensors"
        return f"{clean(str(path))}: holds no .safetensors file; {remedy}"
    return f"{clean(str(path))}: holds no .safetensors file; give the folder that does"


def ambiguous(where: str, names: Sequence[str]) -> str:
    """What to tell a user whose model `where` has several weights files, `names`."""
    listed = clean(", ".join(names[:4]), 160) + (", …" if len(names) > 4 else "")
    what = "several weights files" if all(".safetensors" in name for name in names) else "both formats present"
    return f"{clean(where)}: {what} ({listed}); name the file with --weights FILE or in the policy"
