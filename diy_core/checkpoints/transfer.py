"""From any reader to any writer: a group of tensors at a time, summed, and read back at the end.

While one group is written, the next two are read and summed in threads: reading, hashing and
writing of large buffers all release Python's lock. Large tensors are not read ahead, so that one of
them is held at most.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import cast, sha256
from diy_core.checkpoints.interface import GROUP, Reader, Stored, Writer, groups
from diy_core.checkpoints.manifest import Entry, Manifest
from diy_core.errors import CheckpointError
from diy_core.notes import refuse
from diy_core.system.memory import trim

Arrays = dict[str, NDArray[Any]]
Progress = Callable[[str, int, int], None]  # what is done, bytes of it so far, bytes in all
MakeWriter = Callable[[Reader, Mapping[str, Stored]], Writer]
Result = TypeVar("Result")
_READ_AHEAD = 64 << 20  # bytes
_WORKERS = 2


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a transfer did.

    Attributes:
        kind: what was written: `hf`, `orbax` or `gguf`.
        tensors: how many.
        nbytes: of all tensors as they were written.
        seconds: in all.
        verified: whether everything was read back and compared.
        source_verified: whether the source's tensors were compared with a manifest of its own.
        notes: what a user should know.
    """

    kind: str
    tensors: int
    nbytes: int
    seconds: float
    verified: bool
    source_verified: bool
    notes: list[str]


def transfer(
    reader: Reader,
    make_writer: MakeWriter,
    *,
    dtype: np.dtype[Any] | None = None,
    verify: bool = True,
    strict: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """Write a checkpoint from another one.

    Args:
        reader: where tensors, config and side files come from. Where it has a manifest, what is
            read is compared with it, if `verify` says so.
        make_writer: builds the writer for a source and the layout.
        dtype: of all tensors; None keeps the dtype of each.
        verify: read everything back before it moves into place, and compare.
        strict: refuse a source that has notes.
        progress: called often.

    Raises:
        CheckpointError: a damaged source, one that changes meanwhile, a value that `dtype` cannot
            hold, a target in the way, a target that does not read back as it was written, or, with
            `strict`, notes. Nothing is
            left behind then.
    """
    begun = time.monotonic()
    layout = {
        name: dataclasses.replace(tensor, dtype=dtype or tensor.dtype)
        for name, tensor in reader.stored.items()
    }
    refuse(reader.path, reader.notes, strict=strict)
    known = verify and reader.manifest is not None
    if known:
        reader.require_manifest()
    total = sum(tensor.nbytes for tensor in layout.values())
    with make_writer(reader, layout) as writer:
        sums = _copy(reader, writer, layout, known, _counting(progress, "writing", layout, total))
        entries = {
            name: Entry(str(layout[name].dtype), tensor.shape, sums[name])
            for name, tensor in layout.items()
        }
        manifest = Manifest.of(entries, reader.name)
        written = writer.finish(manifest)
        if verify:
            check(written, manifest, progress)
        reader.sources.require_unchanged()
        refuse(reader.path, reader.notes, strict=strict)  # some come up while it is read
    return Summary(
        kind=writer.kind,
        tensors=len(layout),
        nbytes=total,
        seconds=time.monotonic() - begun,
        verified=verify,
        source_verified=known,
        notes=reader.notes,
    )


@dataclasses.dataclass
class _Loaded:
    """A group of tensors, ready to be written, with their sums."""

    arrays: Arrays = dataclasses.field(default_factory=dict)
    sums: dict[str, str] = dataclasses.field(default_factory=dict)
    faults: list[str] = dataclasses.field(default_factory=list)


def _copy(
    reader: Reader,
    writer: Writer,
    layout: Mapping[str, Stored],
    known: bool,
    done: Callable[[str], None],
) -> dict[str, str]:
    """Every tensor from reader to writer; the sum of each as it was written."""

    def load(names: list[str]) -> _Loaded:
        loaded = _Loaded()
        try:
            arrays = reader.read_group(names)
        except CheckpointError as error:
            return _Loaded(faults=error.faults)
        for name in names:
            array = arrays.pop(name)  # held once, also while it is cast
            kept = array.dtype == layout[name].dtype
            if known and not kept and (fault := reader.fault(name, array)):
                loaded.faults.append(fault)
            try:
                array = cast(array, layout[name].dtype, reader.called(name), reader.path)
            except CheckpointError as error:
                loaded.faults += error.faults
                continue
            loaded.sums[name] = digest = sha256(array)
            if known and kept and (fault := reader.fault(name, array, digest)):
                loaded.faults.append(fault)
            loaded.arrays[name] = writer.prepare(name, array)
        return loaded

    sums: dict[str, str] = {}
    faults: list[str] = []  # all of them are wanted, so reading goes on after the first
    for loaded in _ahead(load, layout, max(reader.group, writer.group)):
        faults += loaded.faults
        if not faults:
            writer.write(loaded.arrays)
        loaded.arrays.clear()
        trim()
        sums |= loaded.sums
        for name in loaded.sums:
            done(name)
    if faults:
        reader.sources.require_unchanged()  # or that is what is wrong with it
        raise CheckpointError(reader.path, faults)
    return sums


def check(reader: Reader, manifest: Manifest, progress: Progress) -> None:
    """Read a whole checkpoint and compare every tensor with its sum.

    Raises:
        CheckpointError: all tensors that are not those of the manifest.
    """
    total = sum(tensor.nbytes for tensor in reader.stored.values())
    done = _counting(progress, "verifying", reader.stored, total)
    faults = [f"tensor {name} is missing" for name in manifest.tensors if name not in reader.stored]

    def load(names: list[str]) -> dict[str, str]:
        sums = {name: digest for name in names if (digest := reader.sum_of(name))}
        # Values that are not finite were refused when the sums were taken.
        arrays = reader.read_group([n for n in names if n not in sums], finite=False)
        for name in list(arrays):
            sums[name] = sha256(arrays.pop(name))
        return sums

    ahead = total if reader.sums_in_place else _READ_AHEAD
    for sums in _ahead(load, reader.stored, reader.group, ahead):
        trim()
        for name, digest in sums.items():
            if fault := manifest.check(name, reader.stored[name], digest):
                faults.append(fault)
            done(name)
    if faults:
        reader.sources.require_unchanged()  # or that is what is wrong with it
        raise CheckpointError(reader.path, faults)


def _ahead(
    load: Callable[[list[str]], Result],
    stored: Mapping[str, Stored],
    limit: int,
    ahead: int = _READ_AHEAD,
) -> Iterator[Result]:
    """What `load` makes of each group of tensors, in order.

    While one is worked on the next two are loaded, of large groups the next one; those of more
    bytes than `ahead` wait for their turn.
    """
    workers = _WORKERS if limit <= GROUP else 1
    planned = list(groups(stored, limit))
    sizes = [sum(stored[name].nbytes for name in group) for group in planned]
    pending: deque[Future[Result]] = deque()
    begun = 0
    with ThreadPoolExecutor(workers) as pool:
        for turn in range(len(planned)):
            while begun < min(turn + 1 + workers, len(planned)):
                if begun > turn and sizes[begun] > ahead:
                    break
                pending.append(pool.submit(load, planned[begun]))
                begun += 1
            yield pending.popleft().result()


def _counting(
    progress: Progress, what: str, stored: Mapping[str, Stored], total: int
) -> Callable[[str], None]:
    done = 0
    progress(what, 0, total)

    def add(name: str) -> None:
        nonlocal done
        done += stored[name].nbytes
        progress(what, done, total)

    return add
