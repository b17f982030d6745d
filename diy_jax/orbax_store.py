"""The JAX side's checkpoint: an Orbax tree of params, with the config and tokenizer beside it.

    DIR/              is an Orbax checkpoint: `orbax.checkpoint.v1.load(DIR)` reads the params
    DIR/state/        the params in the Flax layout; Orbax v0 reads this folder
    DIR/config.json   and tokenizer.json, ... as in a Hugging Face directory

The one place that calls Orbax, through its v1 interface. Parameters go in and out in groups
(Orbax's partial saving and loading), so that memory does not grow with the model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from orbax.checkpoint import v1 as ocp

from diy_core.checkpoints import hf_directory
from diy_core.checkpoints.atomic import atomic_directory, recover
from diy_core.checkpoints.dtypes import FLOAT_NAMES, contiguous
from diy_core.checkpoints.interface import Reader, Stored, Writer
from diy_core.checkpoints.manifest import MANIFEST, Manifest
from diy_core.checkpoints.safetensors_files import JSON_LIMIT
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import flatten, match_flax, tensors, unflatten
from diy_core.memory import returning_buffers

STATE = "state"
_OWN = {STATE, "_CHECKPOINT_METADATA", "orbax.checkpoint", "commit_success.txt"}
# Orbax keeps an array as one chunk unless told otherwise, and then holds it several times.
_CHUNK = 16 << 20  # bytes
# Every group that is written costs a round of metadata, so a few are better than many.
_GROUP = 64 << 20  # bytes
_READING = threading.Lock()  # reports are switched off for the whole process
_PATIENCE = 50  # tenths of a second that a failed write may go on for


def is_store(path: str | Path) -> bool:
    """True for a directory that `OrbaxWriter` wrote."""
    path = Path(path)
    return (path / STATE).is_dir() and (path / hf_directory.CONFIG).is_file()


class OrbaxReader(Reader):
    """The parameters of an Orbax checkpoint, in the Hugging Face layout.

    Args:
        path: a directory that `OrbaxWriter` wrote.
        untie: give a tied model a head of its own, equal to the embedding.

    Raises:
        ValueError: a `config.json` that cannot be honoured.
        CheckpointError: not a checkpoint, or its params are not those of its config.
    """

    kind = "orbax"

    def __init__(self, path: str | Path, *, untie: bool = False) -> None:
        path = Path(path).absolute()  # Orbax finds nothing at a relative path, in silence
        if not path.exists():
            recover(path)
        if not is_store(path):
            raise CheckpointError(
                path, f"is no Orbax checkpoint: it needs {STATE}/ and config.json"
            )
        config = DIYConfig.from_pretrained(path)
        for file in (path / "_CHECKPOINT_METADATA", path / STATE / "_METADATA"):
            if file.is_file() and file.stat().st_size > JSON_LIMIT:  # Orbax would read all of it
                raise CheckpointError(file, f"is longer than {JSON_LIMIT} bytes")
        try:
            with _without_reports():
                metadata = ocp.metadata(path).metadata
        except Exception as error:  # damaged files surface as exceptions of many kinds
            raise _cannot_read(path, error) from error
        if not isinstance(metadata, Mapping):
            raise CheckpointError(path, f"Orbax finds no params in it: {metadata!r}")
        self._leaves = flatten(metadata)
        if config.num_hidden_layers > len(self._leaves):  # the table of their names could be huge
            raise CheckpointError(
                path,
                f"config.json says num_hidden_layers: {config.num_hidden_layers}, with "
                f"{len(self._leaves)} parameters",
            )
        faults = match_flax(self._leaves, config) or [
            f"parameter {'/'.join(name)} has dtype {leaf.dtype}, which is no float"
            for name, leaf in self._leaves.items()
            if str(leaf.dtype) not in FLOAT_NAMES
        ]
        if faults:
            raise CheckpointError(path, faults)
        self._tensors = {tensor.hf: tensor for tensor in tensors(config)}
        dtypes = {name: np.dtype(self._leaves[t.flax].dtype) for name, t in self._tensors.items()}
        stored = {
            name: Stored(tensor.shape, dtypes[name], str(dtypes[name]))
            for name, tensor in self._tensors.items()
        }
        super().__init__(path, config, stored)
        if untie:
            self.untie()

    def called(self, name: str) -> str:
        """The parameter's path in the Flax tree."""
        return "/".join(self._tensors[self._copies.get(name, name)].flax)

    def _find_manifest(self) -> Manifest | None:
        return Manifest.of_directory(self.path)

    def _read(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        paths = {name: self._tensors[name].flax for name in names}
        # Asked for as numpy in the dtype of the file: Orbax would cast to another one in silence.
        leaves = [self._leaves[path] for path in paths.values()]
        try:
            # Orbax reads in many threads, and what they free would stay in the heap of each.
            with _READING, returning_buffers(), _without_reports(), _context():
                wanted = {
                    path: np.empty(leaf.shape, leaf.dtype)
                    for path, leaf in zip(paths.values(), leaves, strict=True)
                }
                tree = flatten(ocp.load(self.path, unflatten(wanted)))
        except Exception as error:  # damaged files surface as exceptions of many kinds
            raise _cannot_read(self.path, error) from error
        del wanted
        result = {}
        for name, path in paths.items():
            array = np.asarray(tree.pop(path))
            result[name] = contiguous(self._tensors[name].to_flax.inverse(array))
        return result

    def copy_side_files(self, to: Path) -> None:
        """Copy tokenizer, generation config and the like."""
        hf_directory.copy_side_files(self.path, to)


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
        path = Path(path).absolute()  # Orbax finds nothing at a relative path, in silence
        recover(path)
        _refuse_foreign(path)
        self._source, self._layout = source, layout
        self._tensors = {tensor.hf: tensor for tensor in tensors(source.config)}
        with contextlib.ExitStack() as stack:
            stack.enter_context(_without_reports())
            stack.enter_context(_plain_errors(path))
            self._temporary = stack.enter_context(atomic_directory(path, overwrite=overwrite))
            stack.enter_context(_settled(self._temporary))
            self._stack = stack.pop_all()
        # Orbax wants a directory of its own making, so its files move up from one at the end.
        self._orbax = self._temporary / "orbax"

    def prepare(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """The tensor in the Flax layout."""
        return contiguous(self._tensors[name].to_flax(array))

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write some prepared tensors."""
        flat = {self._tensors[name].flax: array for name, array in arrays.items()}
        with _context():
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
        hf_directory.write_json(here / hf_directory.CONFIG, values)
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
    from diy_jax.checkpoint import build_params

    reader = OrbaxReader(path)
    by_name = {tensor.hf: tensor for tensor in tensors(reader.config)}
    named = ((by_name[name], array) for name, array in reader.read_all(verify))
    return reader.config, build_params(named, dtype)


@contextlib.contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """The system's error instead of a ValueError that has it among a thousand other characters."""
    try:
        yield
    except ValueError as error:
        if code := re.search(r"\[os_error_code='(\d+)'\]", str(error)):
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        raise


@contextlib.contextmanager
def _settled(folder: Path) -> Iterator[None]:
    """After an error, wait for Orbax's other writes, which would make removed folders anew."""
    try:
        yield
    except BaseException:
        seen: list[tuple[str, int]] = []
        for _ in range(_PATIENCE):
            time.sleep(0.1)
            now = [(name, len(files)) for name, _, files in os.walk(folder)]
            if now == seen:
                break
            seen = now
        raise


@contextlib.contextmanager
def _without_reports() -> Iterator[None]:
    """Orbax raises an error, and also prints it from each of its threads, hundreds of lines of it.

    After an error it stays so: what went on beside the thing that failed may end at any time.
    """
    loggers, usual = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    if _is_no_report in loggers[0].filters:  # inside of another, or after an error
        yield
        return

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":  # nobody waits for it any more
            usual(unraisable)

    for logger in loggers:
        logger.addFilter(_is_no_report)
    sys.unraisablehook = hook
    yield
    for logger in loggers:
        logger.removeFilter(_is_no_report)
    sys.unraisablehook = usual


def _is_no_report(record: logging.LogRecord) -> bool:
    return record.exc_info is None and "Failed to get metadata" not in record.getMessage()


def _cannot_read(path: Path, error: Exception) -> CheckpointError:
    text = str(error).split(" [tensorstore_spec")[0]
    return CheckpointError(path, f"Orbax cannot read it: {text or repr(error)}")


def _context() -> ocp.Context:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    context.array.saving.storage_options.chunk_byte_size = _CHUNK
    # Weights hardly shrink, and compressing them takes half of the time.
    context.array.saving.use_compression = False
    return context


def _refuse_foreign(path: Path) -> None:
    """Raise where the directory holds what no checkpoint of ours has: it would be lost."""
    own = {*_OWN, hf_directory.CONFIG, MANIFEST, *hf_directory.SIDE_FILES}
    other = (
        sorted(item.name for item in path.iterdir() if item.name not in own)
        if path.is_dir()
        else []
    )
    if other:
        raise CheckpointError(
            path,
            f"holds {', '.join(other[:3])}, which is no part of an Orbax checkpoint: choose "
            "another place, or remove it",
        )
