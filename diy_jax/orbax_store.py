"""The JAX side's checkpoint: an Orbax tree of params, with the config and tokenizer beside it.

    DIR/              is an Orbax checkpoint: `orbax.checkpoint.v1.load(DIR)` reads the params
    DIR/state/        the params in the Flax layout; Orbax v0 reads this folder
    DIR/config.json   and tokenizer.json, ... as in a Hugging Face directory

Parameters go in and out in groups (Orbax's partial saving and loading), so that memory does not
grow with the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from orbax.checkpoint import v1 as ocp

from diy_core.checkpoints.atomic import atomic_directory, recover, refuse_left_aside
from diy_core.checkpoints.dtypes import contiguous, fault_of_dtype
from diy_core.checkpoints.hf import directory as hf_directory
from diy_core.checkpoints.hf.side_files import copy_side_files, is_side_name
from diy_core.checkpoints.interface import Reader, Stored, Writer
from diy_core.checkpoints.manifest import MANIFEST, Manifest
from diy_core.checkpoints.orbax.layout import (
    config_directory,
    is_made_by_orbax,
    is_whole,
    locate,
    require_regular_files,
)
from diy_core.checkpoints.orbax.params import find_params
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError, naming
from diy_core.mapping import flatten, match_flax, tensors, unflatten
from diy_core.notes import settle
from diy_core.system.json_file import write_json
from diy_core.system.memory import returning_buffers
from diy_core.system.places import place
from diy_core.system.snapshots import snapshot
from diy_jax.orbax_files import (
    READING,
    as_unreadable,
    context,
    plain_errors,
    settled,
    without_reports,
)
from diy_jax.tensors import build_params

# Every group that is written costs a round of metadata, so a few are better than many.
_GROUP = 64 << 20  # bytes


class OrbaxReader(Reader):
    """The parameters of an Orbax checkpoint, in the Hugging Face layout.

    Args:
        path: a directory that `OrbaxWriter` wrote, or that Orbax wrote for another program, with
            the parameters of the Flax twin in it; of several steps the newest is read.
        config: a config.json, or a directory with one and the tokenizer; None: it lies in `path`.
        untie: give a tied model a head of its own, equal to the embedding.

    Raises:
        ValueError: a `config.json` that cannot be honoured.
        CheckpointError: not a checkpoint, no config.json, or its params are not those of it.
    """

    kind = "orbax"

    def __init__(
        self, path: str | Path, *, config: str | Path | None = None, untie: bool = False
    ) -> None:
        path = Path(path)
        _require_utf8(path)
        refuse_left_aside(path)
        if not path.is_dir():
            raise CheckpointError(path, "is not an Orbax checkpoint: it is not a directory")
        whole = path.absolute()  # Orbax silently finds nothing at a relative path
        with naming(whole, path):
            self._location = locate(whole)
            self._side = config_directory(whole, config)
            with self.sources.recording():
                require_regular_files(self._location)
                model = DIYConfig.from_pretrained(self._side)
            params = find_params(self._metadata(whole), whole)
            self._places = params.places
            faults = _faults(params.leaves, model)
            if faults:
                raise CheckpointError(path, faults)
        self._tensors = {tensor.hf: tensor for tensor in tensors(model)}
        dtypes = {n: np.dtype(params.leaves[t.flax].dtype) for n, t in self._tensors.items()}
        stored = {
            name: Stored(tensor.shape, dtypes[name], str(dtypes[name]))
            for name, tensor in self._tensors.items()
        }
        super().__init__(path, model, stored)
        notes = (*self._location.notes, *params.notes)
        self.notes += [note.replace(str(whole), str(path)) for note in notes]
        if untie:
            self.untie()

    def _metadata(self, path: Path) -> Mapping[str, Any]:
        """What Orbax knows of the arrays, without reading them."""
        checkpoint, item = self._location.checkpoint, self._location.item
        with as_unreadable(path, self._location.advice), without_reports():
            metadata = ocp.metadata(checkpoint, item).metadata
            if not isinstance(metadata, Mapping):  # it failed without an error
                found = "a file is missing or damaged" if metadata is None else repr(metadata)
                raise ValueError(f"it finds no params: {found:.200}")
        return metadata

    @property
    def files(self) -> Sequence[Path]:
        """The directory; of one with several steps or items, that of the arrays."""
        return [self.path if is_whole(self.path) else self._location.tree]

    def called(self, name: str) -> str:
        """The parameter's path in the Flax tree."""
        return "/".join(self._tensors[self._copies.get(name, name)].flax)

    def _find_manifest(self) -> Manifest | None:
        return Manifest.of_directory(self.path)

    def _read(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        paths = {name: self._places[self._tensors[name].flax] for name in names}
        unreadable = as_unreadable(self.path, self._location.advice)
        # Orbax reads in many threads, and what they free would stay in the heap of each.
        with unreadable, READING, returning_buffers(), without_reports(), context():
            # As numpy in the dtype of the file: Orbax would silently cast to another one.
            wanted = {
                path: np.empty(self._tensors[name].flax_shape, self.stored[name].dtype)
                for name, path in paths.items()
            }
            asked = unflatten(wanted)
            found = ocp.load(
                self._location.checkpoint, asked, checkpointable_name=self._location.item
            )
            tree = flatten(found)
        del wanted, asked
        result = {}
        for name, path in paths.items():
            array = np.asarray(tree.pop(path))
            result[name] = contiguous(self._tensors[name].to_flax.inverse(array))
        return result

    def _copy_side_files(self, to: Path) -> None:
        copy_side_files(self._side, to)


class OrbaxWriter(Writer):
    """An Orbax checkpoint, written in groups of parameters.

    Args:
        path: where.
        source: where config and tokenizer come from.
        layout: every tensor, in the order of writing.
        overwrite: whether an existing checkpoint is replaced.

    Raises:
        CheckpointError: `path` exists and is not to be replaced, or holds something else.
    """

    kind = "orbax"
    group = _GROUP

    def __init__(
        self,
        path: str | Path,
        source: Reader,
        layout: Mapping[str, Stored],
        *,
        overwrite: bool = True,
    ) -> None:
        super().__init__()
        path = place(path)
        _require_utf8(path)
        recover(path)
        _refuse_foreign(path)
        hf_directory.refuse_foreign_config(path)
        self._source, self._layout = source, layout
        self._tensors = {tensor.hf: tensor for tensor in tensors(source.config)}
        with contextlib.ExitStack() as stack:
            stack.enter_context(without_reports())
            stack.enter_context(plain_errors(path))
            self._temporary = stack.enter_context(
                atomic_directory(path, overwrite=overwrite, own=_is_own)
            )
            stack.enter_context(settled(self._temporary))
            self._stack = stack.pop_all()
        # Orbax wants a directory of its own making, so its files move up from one at the end.
        self._orbax = self._temporary / "orbax"

    def prepare(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """The tensor in the Flax layout."""
        return contiguous(self._tensors[name].to_flax(array))

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write some prepared tensors."""
        flat = {self._tensors[name].flax: array for name, array in arrays.items()}
        with context():
            ocp.partial.save(self._orbax, unflatten(flat))

    def finish(self, manifest: Manifest) -> OrbaxReader:
        """Join the groups, write config, manifest and the files beside them, and open it."""
        ocp.partial.finalize(self._orbax)
        here = self._temporary
        for item in self._orbax.iterdir():
            item.rename(here / item.name)
        self._orbax.rmdir()
        dtypes = sorted({str(tensor.dtype) for tensor in self._layout.values()})
        values = hf_directory.with_dtype(self._source.config.to_dict(), dtypes)
        write_json(here / hf_directory.CONFIG, values)
        (here / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        self._source.copy_side_files(here)
        return OrbaxReader(here)


def load_params(
    path: str | Path, dtype: Any = None, verify: bool = False
) -> tuple[DIYConfig, dict[str, Any]]:
    """The config, and params as JAX arrays for `model.apply({"params": params}, ...)`.

    Args:
        path: a directory that `OrbaxWriter` wrote.
        dtype: of the params; None keeps the dtype of the file.
        verify: compare every tensor with its SHA-256 in the manifest.

    Raises:
        CheckpointError: not a checkpoint, or its params are not those of its config; or, with
            `verify`, no manifest, or another tensor.
    """
    reader = OrbaxReader(path)
    by_name = {tensor.hf: tensor for tensor in tensors(reader.config)}
    named = ((by_name[name], array) for name, array in reader.read_all(verify))
    params = build_params(named, dtype)
    settle(path, reader.notes)
    return reader.config, params


def _faults(leaves: Mapping[tuple[str, ...], Any], config: DIYConfig) -> list[str]:
    """What is wrong with the parameters of a tree, by the config."""
    layers = config.num_hidden_layers
    if layers > len(leaves):  # and the table of their names could fill the memory
        return [f"config.json says num_hidden_layers: {layers}, with {len(leaves)} parameters"]
    return match_flax(leaves, config) or [
        f"parameter {'/'.join(name)} {fault}"
        for name, leaf in leaves.items()
        if (fault := fault_of_dtype(leaf.dtype))
    ]


def _require_utf8(path: Path) -> None:
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:
        raise CheckpointError(
            path, "is not UTF-8 as a name, and Orbax takes no other: choose another, or rename it"
        ) from None


def _is_own(name: str) -> bool:
    ours = name in {hf_directory.CONFIG, MANIFEST} or is_side_name(name)
    return ours or is_made_by_orbax(name)


def _refuse_foreign(path: Path) -> None:
    """Raise where the directory holds what no checkpoint of ours has: it would be lost."""
    names = snapshot(path) if path.is_dir() else ()
    other = sorted(name for name in names if not _is_own(name))
    if other:
        raise CheckpointError(
            path,
            f"holds {', '.join(other[:3])}, which is not part of an Orbax checkpoint: choose "
            "another place, or remove it",
        )
