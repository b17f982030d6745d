"""The safetensors files of one directory: which of them hold the model, and what is in which."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from diy_core.checkpoints.hf.safetensors_files import (
    Slot,
    read_header,
    refuse_twice,
    sum_of_slot,
)
from diy_core.errors import CheckpointError
from diy_core.system.lfs import refuse_lfs_pointer
from diy_core.system.outside import is_there, names_in, read_bytes, require_regular
from diy_core.system.parsing import parse_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ENDING = ".safetensors"
# What files under other names are, by a pattern of the name.
_OTHERS = {
    r"adapter_model\.safetensors": "an adapter and no model: merge it into its base model (peft's "
    "merge_and_unload), and save that",
    r"consolidated(\.\d+)?(-\d+-of-\d+)?\.safetensors": "weights under the names of their maker's "
    "own code: get the files that transformers reads",
    r"model-\d+-of-\d+\.safetensors": f"shards without their {INDEX}: get it from where they came",
    r"model\.\w+\.safetensors": f"a variant: rename it to {SINGLE} if it is the one that is meant",
    r"model\.\w+-\d+-of-\d+\.safetensors": "shards of a variant: rename its index to "
    f"{INDEX} if it is the one that is meant",
}
_SHARD = re.compile(r"(.+)-\d{5}(-of-\d{5}\.safetensors)")
_SHOWN = 3  # names of files in an error


@dataclasses.dataclass(frozen=True)
class Found:
    """The tensors of a directory.

    Attributes:
        slots: where each lies, under the name that it has there.
        notes: what a user should know about the files.
        absent: what an index names and no file holds, with the file where it should be.
    """

    slots: dict[str, Slot]
    notes: list[str]
    absent: dict[str, str] = dataclasses.field(default_factory=dict)


def find_tensors(path: Path, passed_over: Callable[[str], bool]) -> Found:
    """Where each tensor of a directory lies, out of its single file or of its index.

    Links are followed: what stands in a user's directory is the user's. Names that come from an
    index are not: they must be those of files in the directory or below it. What the files hold
    counts, where an index says otherwise and there is one way to take it: that is noted.

    Args:
        path: the directory.
        passed_over: names on which index and files may disagree.

    Raises:
        CheckpointError: no such file, only pickles, an index or a header that is not true.
    """
    single, index = path / SINGLE, path / INDEX
    indexed = is_there(index)
    if is_there(single):
        both = [f"{INDEX} was passed over: {SINGLE} is there too"] if indexed else []
        return Found(read_header(single), both)
    if indexed:
        return _indexed(path, index, passed_over)
    raise CheckpointError(path, _on_other_files(path))


def _on_other_files(path: Path) -> str:
    """What a directory has in place of the files that are looked for."""
    tensors = [name for name in names_in(path) if name.endswith(_ENDING)]
    for pattern, what in _OTHERS.items():
        if alike := [name for name in tensors if re.fullmatch(pattern, name)]:
            return f"has neither {SINGLE} nor {INDEX}, but {listed(alike)}, {what}"
    if tensors:
        return (
            f"has neither {SINGLE} nor {INDEX}, but {listed(tensors)}: rename a single file to "
            f"{SINGLE}, or write an index"
        )
    return f"has neither {SINGLE} nor {INDEX}"


def listed(names: list[str]) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if names[_SHOWN:] else ""
    )


def _indexed(path: Path, index: Path, passed_over: Callable[[str], bool]) -> Found:
    weight_map: dict[str, str] = {}
    faults: list[str] = []
    files: dict[str, Path] = {}
    absent: dict[str, list[str]] = {}
    present = _Present(path)
    for name, named in _read_index(index).items():
        file = inside(named)
        if file is None or not file.endswith(_ENDING):
            faults.append(f"tensor {name} lies in {named!r}, which is not a file of this directory")
            continue
        weight_map[name] = file
        if present.fault(file) is None:
            files[file] = path / file
        elif not passed_over(name):
            absent.setdefault(file, []).append(name)
    files |= {name: path / name for name in _of_the_same_set(names_in(path), weight_map.values())}
    for missing, of in absent.items():
        few = of if len(of) <= _SHOWN else of[:1]
        more = f" and {len(of) - 1} others" if len(of) > _SHOWN else ""
        why = present.fault(missing)
        faults += [f"tensor {name}{more} lies in {missing}, which {why}" for name in few]
    held: dict[str, list[Slot]] = {}
    for shard in files.values():
        for name, slot in read_header(shard).items():
            held.setdefault(name, []).append(slot)
    faults += _that_differ(held, passed_over)
    if faults:
        raise CheckpointError(index, faults)
    slots = {name: _listed_one(held[name], files.get(weight_map.get(name, ""))) for name in held}
    return Found(
        {name: slots[name] for name in [*weight_map, *slots] if name in slots},
        _disagreements(held, {n: files.get(f) for n, f in weight_map.items()}, passed_over),
        {n: f for n, f in weight_map.items() if n not in held and not passed_over(n)},
    )


def _of_the_same_set(names: Iterable[str], named: Iterable[str]) -> list[str]:
    """Shards that an index does not name, and that count themselves to those that it names."""
    sets = {match.group(1, 2) for name in named if (match := _SHARD.fullmatch(name))}
    known = {*named}
    return [
        name
        for name in names
        if (match := _SHARD.fullmatch(name)) and match.group(1, 2) in sets and name not in known
    ]


def inside(name: Any) -> str | None:
    """A name out of a file, as that of a file in or below its directory; None: it leads elsewhere.

    On any system: one that is read on another must not lead out of the directory there.
    """
    if not isinstance(name, str) or "\\" in name or PureWindowsPath(name).drive:
        return None
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or name.endswith(("/", "/.")):
        return None
    return str(path)


class _Present:
    """The files of a directory and of folders in it, found by listing them.

    So only what was listed is handed to the system, and never a name out of an index.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._names: dict[Path, set[str]] = {}
        self._faults: dict[str, str | None] = {}

    def fault(self, name: str) -> str | None:
        """Why a file cannot be opened, under a name that `inside` returned; None: it can."""
        if name not in self._faults:
            self._faults[name] = self._looked_up(*PurePosixPath(name).parts)
        return self._faults[name]

    def _looked_up(self, *parts: str) -> str | None:
        place = self._path
        for part in parts:
            if place != self._path and place.is_symlink():
                return f"lies behind a link ({place.relative_to(self._path)}): put the files there"
            if place not in self._names:
                self._names[place] = set(names_in(place)) if place.is_dir() else set()
            if part not in self._names[place]:
                return "does not exist"
            place = place / part
        return _fault(place)


def _listed_one(slots: list[Slot], file: Path | None) -> Slot:
    """Of equal tensors in several files the one that the index means."""
    return next((slot for slot in slots if slot.file == file), slots[0])


def _that_differ(held: Mapping[str, list[Slot]], passed_over: Callable[[str], bool]) -> list[str]:
    """Faults: tensors that several files hold, and not the same."""
    faults = []
    for name, (first, *others) in held.items():
        for other in () if passed_over(name) else others:
            alike = (first.dtype, first.shape) == (other.dtype, other.shape)
            if not alike or sum_of_slot(first) != sum_of_slot(other):
                faults.append(
                    f"tensor {name} is in {first.file.name} and in {other.file.name}, and they "
                    "differ: keep the shards of one model"
                )
    return faults


def _disagreements(
    held: Mapping[str, list[Slot]],
    weight_map: Mapping[str, Path | None],
    passed_over: Callable[[str], bool],
) -> list[str]:
    """Notes on tensors of which index and files say different things, a note for each kind."""
    places = {n: [slot.file for slot in s] for n, s in held.items() if not passed_over(n)}
    unlisted = [name for name in places if name not in weight_map]
    moved = [n for n, files in places.items() if n in weight_map and weight_map[n] not in files]
    copied = [name for name, files in places.items() if files[1:]]
    notes = []
    if unlisted:
        notes.append(
            f"the index does not list {listed(unlisted)}: read from the shards all the same"
        )
    if moved:
        notes.append(f"the index has {listed(moved)} in another shard: read from where it lies")
    if copied:
        notes.append(f"several shards hold {listed(copied)}, with the same values: read from one")
    return notes


def _fault(file: Path) -> str | None:
    """Why a file cannot be opened, or None."""
    try:
        require_regular(file)
    except CheckpointError as error:
        return error.faults[0]
    return None


def _read_index(index: Path) -> Mapping[str, Any]:
    refuse_lfs_pointer(index)
    try:
        text = read_bytes(index, "header_bytes")
        weight_map = parse_json(text, index, pairs=refuse_twice(index))["weight_map"]
    except CheckpointError:
        raise
    except (KeyError, TypeError) as error:
        raise CheckpointError(index, f"is not an index with a weight_map: {error}") from error
    if not isinstance(weight_map, dict):
        raise CheckpointError(index, "weight_map is not an object")
    return weight_map
