"""Which safetensors file of a directory holds which tensor: one file, or shards with an index.

Strict, since the loaders are not: no name twice, no file outside the directory, no pickles.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from diy_core.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def tensor_files(path: Path) -> dict[str, Path]:
    """Which file holds which tensor, out of the index or of the single file.

    Raises:
        CheckpointError: no such file, only pickles, or an index that is not true.
    """
    single, index = path / SINGLE, path / INDEX
    if single.exists() and index.exists():
        raise CheckpointError(path, f"has both {SINGLE} and {INDEX}: remove the one that is old")
    if index.exists():
        return _indexed_files(path, index)
    if single.exists():
        return dict.fromkeys(_names_in(single), single)
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            path,
            f"has only pickled weights ({pickles[0]}), which can run any code when they are read: "
            "convert them to safetensors first",
        )
    raise CheckpointError(path, f"has neither {SINGLE} nor {INDEX}")


def _indexed_files(path: Path, index: Path) -> dict[str, Path]:
    try:
        text = index.read_text(encoding="utf-8")
        weight_map = json.loads(text, object_pairs_hook=_refuse_twice(index))["weight_map"]
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(index, f"is not an index with a weight_map: {error}") from error
    if not isinstance(weight_map, dict):
        raise CheckpointError(index, "weight_map is not an object")
    faults, files = [], {}
    # Names out of the index are looked up here and never handed to the system.
    present = {file.name: file for file in path.glob("*.safetensors") if file.is_file()}
    for name, file in weight_map.items():
        plain = isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")
        if not plain or (file in present and not _lies_in(path, present[file])):
            faults.append(f"tensor {name} lies in {file!r}, which is no file of this directory")
        elif file not in present:
            faults.append(f"tensor {name} lies in {file}, which does not exist")
        else:
            files[name] = present[file]
    listed: dict[Path, set[str]] = {}
    for name, file in files.items():
        listed.setdefault(file, set()).add(name)
    for file, names in listed.items():
        held = _names_in(file)
        faults += [f"{file.name} does not hold {name}" for name in sorted(names - held)]
        faults += [f"{file.name} holds {name}, not in the index" for name in sorted(held - names)]
    if faults:
        raise CheckpointError(index, faults)
    return files


def _lies_in(path: Path, file: Path) -> bool:
    """True for a file of this directory, also as a link into the hub's cache that it belongs to."""
    root, folder = path.resolve(), file.resolve().parent
    in_cache = root.parent.name == "snapshots" and folder == root.parents[1] / "blobs"
    return folder == root or in_cache


def _names_in(file: Path) -> set[str]:
    """The tensor names of one safetensors file; a name that stands there twice is refused."""
    with open_tensors(file) as opened:
        names = set(opened.keys())
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size), object_pairs_hook=_refuse_twice(file))
    return names & set(header)


def _refuse_twice(file: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = sorted(name for name, count in counts.items() if count > 1)
            raise CheckpointError(file, [f"{name} stands there twice" for name in twice])
        return found

    return build


def open_tensors(file: Path) -> Any:
    """An open safetensors file, for a `with` block.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return safe_open(file, framework="np")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(file, f"is no readable safetensors file: {error}") from error
