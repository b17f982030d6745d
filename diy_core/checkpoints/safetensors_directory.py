"""The safetensors files of one directory: which of them hold the model, and what is in which."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diy_core.checkpoints.pickles import is_pickle
from diy_core.checkpoints.safetensors_files import JSON_LIMIT, Slot, read_header, refuse_twice
from diy_core.errors import CheckpointError
from diy_core.lfs import refuse_lfs_pointer

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# What files under other names are, by a pattern of the name.
_OTHERS = {
    r"adapter_model\.safetensors": "an adapter and no model: merge it into its base model (peft's "
    "merge_and_unload), and save that",
    r"consolidated(\.\d+)?(-\d+-of-\d+)?\.safetensors": "weights under the names of their maker's "
    "own code: get the files that transformers reads",
    r"model-\d+-of-\d+\.safetensors": f"shards without their {INDEX}: get it from where they came",
    r"model\.\w+\.safetensors": f"a variant: rename it to {SINGLE} if it is the one that is meant",
}
_SHOWN = 3  # names of files in an error


@dataclasses.dataclass(frozen=True)
class Found:
    """The tensors of a directory.

    Attributes:
        slots: where each lies, under the name that it has there.
        notes: what a user should know about the files.
    """

    slots: dict[str, Slot]
    notes: list[str]


def find_tensors(path: Path, passed_over: Callable[[str], bool]) -> Found:
    """Where each tensor of a directory lies, out of its single file or of its index.

    Links are followed: what stands in a user's directory is the user's. Names that come from an
    index are not: they must be those of files in the directory.

    Args:
        path: the directory.
        passed_over: names on which index and files may disagree.

    Raises:
        CheckpointError: no such file, only pickles, an index or a header that is not true.
    """
    single, index = path / SINGLE, path / INDEX
    for file in (single, index):
        if file.is_symlink() and not file.exists():
            raise CheckpointError(file, _on_broken_link(file))
    if single.exists():
        both = [f"{INDEX} was passed over: {SINGLE} is there too"] if index.exists() else []
        return Found(read_header(single), both)
    if index.exists():
        return Found(_indexed_slots(path, index, passed_over), [])
    raise CheckpointError(path, _on_other_files(path))


def _on_other_files(path: Path) -> str:
    """What a directory has in place of the files that are looked for."""
    names = sorted(file.name for file in path.iterdir())
    tensors = [name for name in names if name.endswith(".safetensors")]
    for pattern, what in _OTHERS.items():
        if alike := [name for name in tensors if re.fullmatch(pattern, name)]:
            return f"has neither {SINGLE} nor {INDEX}, but {_listed(alike)}, {what}"
    if tensors:
        return (
            f"has neither {SINGLE} nor {INDEX}, but {_listed(tensors)}: rename a single file to "
            f"{SINGLE}, or write an index"
        )
    if pickles := [name for name in names if is_pickle(path / name)]:
        return (
            f"has only pickled weights ({pickles[0]}), which can run any code when they are read: "
            "convert them to safetensors first"
        )
    return f"has neither {SINGLE} nor {INDEX}"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    )


def _on_broken_link(file: Path) -> str:
    return f"is a link to {os.readlink(file)}, which does not exist"


def _indexed_slots(path: Path, index: Path, passed_over: Callable[[str], bool]) -> dict[str, Slot]:
    weight_map = _read_index(index)
    faults: list[str] = []
    listed: dict[Path, set[str]] = {}
    absent: dict[str, list[str]] = {}
    # Names out of the index are looked up here and never handed to the system.
    present = {file.name: file for file in path.glob("*.safetensors")}
    for name, file in weight_map.items():
        plain = isinstance(file, str) and Path(file).name == file and file.endswith(".safetensors")
        if not plain:
            faults.append(f"tensor {name} lies in {file!r}, which is no file of this directory")
        elif file in present and present[file].is_file():
            listed.setdefault(present[file], set()).add(name)
        elif not passed_over(name):
            absent.setdefault(file, []).append(name)
    for missing, of in absent.items():
        state = _absence(present.get(missing))
        few = of if len(of) <= _SHOWN else of[:1]
        more = f" and {len(of) - 1} others" if len(of) > _SHOWN else ""
        faults += [f"tensor {name}{more} lies in {missing}, which {state}" for name in few]
    found: dict[str, Slot] = {}
    for file, names in listed.items():
        slots = read_header(file)
        found |= {n: slot for n, slot in slots.items() if n in names or passed_over(n)}
        faults += [
            f"{file.name} does not hold {name}"
            for name in sorted(names - set(slots))
            if not passed_over(name)
        ]
        faults += [
            f"{file.name} holds {name}, not in the index"
            for name in sorted(set(slots) - names)
            if not passed_over(name)
        ]
    if faults:
        raise CheckpointError(index, faults)
    return {name: found[name] for name in [*weight_map, *found] if name in found}


def _absence(file: Path | None) -> str:
    broken = file is not None and file.is_symlink() and not file.exists()
    return _on_broken_link(file) if broken and file else "does not exist"


def _read_index(index: Path) -> Mapping[str, Any]:
    refuse_lfs_pointer(index)
    try:
        with index.open("rb") as stream:
            text = stream.read(JSON_LIMIT + 1)
        if len(text) > JSON_LIMIT:
            raise CheckpointError(index, f"is longer than {JSON_LIMIT} bytes")
        weight_map = json.loads(text, object_pairs_hook=refuse_twice(index))["weight_map"]
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(index, f"is not an index with a weight_map: {error}") from error
    if not isinstance(weight_map, dict):
        raise CheckpointError(index, "weight_map is not an object")
    return weight_map
