"""Writing a Hugging Face directory, whole or not at all."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diy_core.checkpoints.atomic import recover, replacement
from diy_core.checkpoints.hf.directory import (
    CONFIG,
    HFReader,
    refuse_foreign_config,
    refuse_foreign_directory,
    with_dtype,
)
from diy_core.checkpoints.hf.safetensors_directory import INDEX, SINGLE
from diy_core.checkpoints.hf.safetensors_files import SafetensorsWriter
from diy_core.checkpoints.hf.side_files import is_side_name
from diy_core.checkpoints.interface import Reader, Stored, Writer
from diy_core.checkpoints.kinds import require_name
from diy_core.checkpoints.manifest import MANIFEST, Manifest
from diy_core.checkpoints.memory_reader import MemoryReader
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.system.json_file import write_json
from diy_core.system.places import place
from diy_core.system.snapshots import top

MAX_SHARD_SIZE = 5 * 10**9  # bytes
# What a new model replaces in an older one's directory; all else there is kept.
_REPLACED = re.compile(
    r"config\.json|diy_manifest\.json|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)
_HEADER = 128  # bytes: more than a file's header needs for itself, or for a tensor but its name
_ORBAX = "state"  # the folder by which an Orbax checkpoint is known; it has a config.json too


class HFWriter(Writer):
    """A Hugging Face directory, written shard by shard.

    Weights and config of an existing model directory are replaced; all else in it is kept.

    Args:
        path: where.
        source: where config and tokenizer come from.
        layout: every tensor, in the order of writing.
        overwrite: whether an existing model directory is replaced.
        max_shard_size: bytes; a larger tensor has a shard of its own.
        drop: files of an existing directory that are not kept.

    Raises:
        CheckpointError: `path` exists and is not to be replaced, or holds something else.
    """

    kind = "hf"

    def __init__(
        self,
        path: str | Path,
        source: Reader,
        layout: Mapping[str, Stored],
        *,
        overwrite: bool = True,
        max_shard_size: int = MAX_SHARD_SIZE,
        drop: Collection[str] = (),
    ) -> None:
        super().__init__()
        self._path, self._source, self._layout = place(path), source, layout
        self._drop = drop
        require_name(self._path, self.kind)
        recover(self._path)
        refuse_foreign_directory(self._path, CONFIG)
        refuse_foreign_config(self._path)
        if (self._path / _ORBAX).is_dir():
            raise CheckpointError(
                self._path, f"has {_ORBAX}/, as an Orbax checkpoint has: choose another place"
            )
        self._shards = plan_shards(layout, max_shard_size)
        self._weight_map = {n: file for file, names in self._shards.items() for n in names}
        self._current: SafetensorsWriter | None = None
        self._new = self._stack.enter_context(
            replacement(self._path, overwrite=overwrite, own=self._goes)
        )
        self._temporary = self._new.folder
        self._stack.callback(self._close)

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write some prepared tensors, in the order of the layout."""
        for name, array in arrays.items():
            self._shard(self._weight_map[name]).write(name, array)

    def _shard(self, file: str) -> SafetensorsWriter:
        if self._current is None or self._current.complete:
            self._close()
            names = self._shards[file]
            layout = {name: (self._layout[name].shape, self._layout[name].dtype) for name in names}
            self._current = SafetensorsWriter(self._temporary / file, layout)
        return self._current

    def _close(self) -> None:
        if self._current is not None:
            self._current.close()

    def finish(self, manifest: Manifest) -> HFReader:
        """Write index, config, manifest and the files beside them, and open the directory."""
        self._close()
        here = self._temporary
        if len(self._shards) > 1:
            total = sum(tensor.nbytes for tensor in self._layout.values())
            index = {"metadata": {"total_size": total}, "weight_map": self._weight_map}
            write_json(here / INDEX, index)
        dtypes = sorted({str(tensor.dtype) for tensor in self._layout.values()})
        write_json(here / CONFIG, with_dtype(self._source.config.to_dict(), dtypes))
        (here / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
        self._source.copy_side_files(here)
        self._new.keep_others()
        return HFReader(here)

    def _goes(self, name: str) -> bool:
        dropped = top(name) in self._drop and (name in self._drop or is_side_name(name))
        return _REPLACED.fullmatch(name) is not None or dropped


def plan_shards(layout: Mapping[str, Stored], max_shard_size: int) -> dict[str, list[str]]:
    """Which file holds which tensors: in order, each file as full as it may be, its header too."""
    shards: list[list[str]] = [[]]
    size = _HEADER
    for name, tensor in layout.items():
        needed = tensor.nbytes + len(name) + _HEADER
        if shards[-1] and size + needed > max_shard_size:
            shards.append([])
            size = _HEADER
        shards[-1].append(name)
        size += needed
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    count = len(shards)
    return {
        f"model-{i:05}-of-{count:05}.safetensors": names for i, names in enumerate(shards, start=1)
    }


def write_hf_directory(
    path: str | Path,
    config: DIYConfig,
    arrays: Iterable[tuple[str, NDArray[Any]]],
    write_more: Callable[[Path], None] | None = None,
) -> None:
    """Write arrays that are in memory as a Hugging Face directory, whole or not at all.

    Args:
        path: where; the weights and the config of an existing model directory are replaced, and
            everything else in it is kept.
        config: goes to `config.json`, with the dtype of the tensors.
        arrays: (Hugging Face name, array in the Hugging Face layout), each tensor of the config
            once.
        write_more: called with the directory before it moves into place, for further files.

    Raises:
        CheckpointError: a tensor missing, extra, given twice, misshapen or not finite; or `path` is
            a directory that holds something other than a model.
    """
    from diy_core.checkpoints.transfer import transfer

    held: dict[str, NDArray[Any]] = {}
    twice = []
    for name, array in arrays:
        if name in held:
            twice.append(f"tensor {name} is given twice")
        held[name] = array
    if twice:
        raise CheckpointError(path, twice)
    stored = {name: Stored(array.shape, array.dtype) for name, array in held.items()}
    source = MemoryReader(str(path), config, stored, held.__getitem__, write_more)
    transfer(source, functools.partial(HFWriter, path), verify=False)
