"""A training checkpoint on the disk, written whole or not at all and compared when it is read.

CHECKPOINTS/00000100/state.safetensors    the arrays of `state.py`, as the PyTorch twin keeps them
                     orbax/               or as the JAX twin does
                     diy_manifest.json    the SHA-256 of every array
                     position.json        `Position`, and its SHA-256
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.atomic import atomic_directory
from diy_core.checkpoints.dtypes import dtype_of, fault_of_dtype, fault_of_values, sha256
from diy_core.checkpoints.interface import GROUP, Stored, groups
from diy_core.checkpoints.manifest import MANIFEST, Entry, Manifest
from diy_core.checkpoints.orbax.layout import is_made_by_orbax
from diy_core.checkpoints.training_run import FORMS, POSITION, checkpoint_path
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import match
from diy_core.system.outside import is_there
from diy_core.text.tokenizer_files import read_json
from diy_core.training.state import state_shapes

Arrays = Mapping[str, NDArray[Any]]
# (new folder of a checkpoint, shape and dtype of all arrays, the arrays in parts)
WriteArrays = Callable[[Path, Mapping[str, Stored], Iterable[Arrays]], None]
# (folder of a checkpoint) -> the names of all arrays that it holds
NamesOfArrays = Callable[[Path], Sequence[str]]
# (folder of a checkpoint, shape and dtype of the arrays that are wanted) -> them
ReadArrays = Callable[[Path, Mapping[str, Stored]], dict[str, NDArray[Any]]]


def is_own(name: str) -> bool:
    """Whether a relative path is a part of a checkpoint, and nothing that somebody put there."""
    form, _, inner = name.partition("/")
    if inner:
        return form in FORMS and is_made_by_orbax(inner)
    return name in {MANIFEST, POSITION, *FORMS}


def whole_checkpoints(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints, rising; what is still being written has another name."""
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    steps = (int(item.name) for item in found if item.name.isdecimal() and item.is_dir())
    return sorted(step for step in steps if checkpoint_path(checkpoints, step).is_dir())


def write_checkpoint(
    path: Path,
    write_arrays: WriteArrays,
    layout: Mapping[str, Stored],
    parts: Iterable[Arrays],
    position: Mapping[str, Any],
) -> None:
    """Write a checkpoint, which appears at `path` at the end; one that is there is replaced.

    Args:
        path: where.
        write_arrays: writes the parts, as they come, into the folder that it is given.
        layout: shape and dtype of all arrays of `state_shapes`.
        parts: the arrays, each in one of them.
        position: a JSON object.

    Raises:
        OSError: the disk is full, ...
        CheckpointError: values that are not finite.
    """
    entries: dict[str, Entry] = {}

    def checked() -> Iterator[Arrays]:
        for part in parts:
            if faults := _faults_of_values(part):
                raise CheckpointError(path, faults)
            for name, array in part.items():
                entries[name] = Entry(str(array.dtype), tuple(array.shape), sha256(array))
            yield part

    with atomic_directory(path, own=is_own) as folder:
        write_arrays(folder, layout, checked())
        manifest = Manifest.of(entries, "training")
        (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        (folder / POSITION).write_text(position_text(position), encoding="utf-8")


def position_text(position: Mapping[str, Any]) -> str:
    """The file in which `read_position` finds this JSON object."""
    return json.dumps({"position": position, "sha256": _sum(position)}, indent=1) + "\n"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was opened: names, shapes and dtypes are right, arrays are not read yet.

    Attributes:
        path: its folder.
        position: the JSON object that was written with it.
        manifest: what every array must be.
    """

    path: Path
    position: dict[str, Any]
    manifest: Manifest
    _names_of_arrays: NamesOfArrays
    _read_arrays: ReadArrays

    @classmethod
    def open(
        cls,
        path: Path,
        names_of_arrays: NamesOfArrays,
        read_arrays: ReadArrays,
        config: DIYConfig,
    ) -> Checkpoint:
        """Open a checkpoint of a model with this config.

        Raises:
            CheckpointError: damaged, or of another model; all faults at once.
        """
        manifest = Manifest.of_directory(path)
        if manifest is None:
            raise CheckpointError(path, f"has no {MANIFEST}: it is not a training checkpoint")
        found = {name: entry.shape for name, entry in manifest.tensors.items()}
        faults = match(found, state_shapes(config)) or [
            f"tensor {name} {fault}"
            for name, entry in manifest.tensors.items()
            if (fault := fault_of_dtype(entry.dtype))
        ]
        dtypes = {entry.dtype for entry in manifest.tensors.values()}
        if not faults and len(dtypes) > 1:
            faults = [f"mixes the dtypes {', '.join(sorted(dtypes))}"]
        if faults:
            raise CheckpointError(path, faults)
        position = read_position(path / POSITION)
        return cls(path, position, manifest, names_of_arrays, read_arrays)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of all arrays."""
        return dtype_of(next(iter(self.manifest.tensors.values())).dtype)

    def read(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Some arrays, compared with their sums.

        Raises:
            CheckpointError: they are not what was written, or not finite, which no run writes; or
                others lie beside them.
        """
        if self._unlisted:
            raise CheckpointError(self.path, self._unlisted)
        arrays = self._read_arrays(self.path, {name: self.layout[name] for name in names})
        checked = (self.manifest.check(name, arrays[name]) for name in names)
        if faults := [fault for fault in checked if fault] or _faults_of_values(arrays):
            raise CheckpointError(self.path, faults)
        return arrays

    @functools.cached_property
    def _unlisted(self) -> list[str]:
        """Faults: the arrays of which the manifest knows nothing."""
        known = self.manifest.tensors
        names = self._names_of_arrays(self.path)
        return [
            f"unexpected tensor {name}, not in {MANIFEST}" for name in names if name not in known
        ]

    def read_all(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """All arrays, a few at a time; raises as `read` does."""
        for part in self.parts(GROUP):
            yield from part.items()

    def parts(self, nbytes: int) -> Iterator[Arrays]:
        """All arrays in parts of about so many bytes; raises as `read` does."""
        for names in groups(self.layout, nbytes):
            yield self.read(names)

    @property
    def layout(self) -> dict[str, Stored]:
        """Shape and dtype of every array."""
        entries = self.manifest.tensors.items()
        return {name: Stored(entry.shape, dtype_of(entry.dtype)) for name, entry in entries}


def _faults_of_values(arrays: Arrays) -> list[str]:
    checked = ((name, fault_of_values(array)) for name, array in arrays.items())
    return [f"tensor {name} {fault}" for name, fault in checked if fault]


def read_position(file: Path) -> dict[str, Any]:
    """The JSON object that was written with a checkpoint, compared with its sum.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if not is_there(file):
        raise CheckpointError(file.parent, f"is damaged: it has no {file.name}")
    values = read_json(file)
    position = values.get("position")
    if not isinstance(position, dict) or values.get("sha256") != _sum(position):
        raise CheckpointError(file, "is damaged: its content does not have its SHA-256")
    return position


def _sum(position: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(position, sort_keys=True).encode()).hexdigest()
