"""From any reader to any writer: a group of tensors at a time, summed, and read back at the end.

While one group is written, the next is read and the present one is summed, in threads: reading,
hashing and writing of large buffers all release Python's lock. Large groups are not read ahead, so
that at most one large tensor is held.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import cast, sha256
from diy_core.checkpoints.interface import GROUP, Reader, Stored, Writer, groups
from diy_core.checkpoints.manifest import Entry, Manifest
from diy_core.errors import CheckpointError
from diy_core.memory import trim

Arrays = dict[str, NDArray[Any]]
Progress = Callable[[str, int, int], None]  # what is done, bytes of it so far, bytes in all
MakeWriter = Callable[[Reader, Mapping[str, Stored]], Writer]
_READ_AHEAD = 64 << 20  # bytes


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
    progress: Progress = lambda what, done, total: None,
) -> Summary:
    """Write a checkpoint from another one.

    Args:
        reader: where tensors, config and side files come from. Where it has a manifest, what is
            read is compared with it, if `verify` says so.
        make_writer: builds the writer for a source and the layout.
        dtype: of all tensors; None keeps the dtype of each.
        verify: read everything back before it moves into place, and compare.
        progress: called often.

    Raises:
        CheckpointError: a damaged source, a value that `dtype` cannot hold, a target in the way, or
            a target that does not read back as it was written. Nothing is left behind then.
    """
    begun = time.monotonic()
    layout = {
        name: dataclasses.replace(tensor, dtype=dtype or tensor.dtype)
        for name, tensor in reader.stored.items()
    }
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
    return Summary(
        kind=writer.kind,
        tensors=len(layout),
        nbytes=total,
        seconds=time.monotonic() - begun,
        verified=verify,
        source_verified=known,
        notes=reader.notes,
    )


def _copy(
    reader: Reader,
    writer: Writer,
    layout: Mapping[str, Stored],
    known: bool,
    done: Callable[[str], None],
) -> dict[str, str]:
    """Every tensor from reader to writer; the sum of each as it was written."""
    sums: dict[str, str] = {}
    faults: list[str] = []  # all of them are wanted, so reading goes on after the first

    def load(names: list[str]) -> Arrays:
        try:
            return prepare(reader.read_group(names))
        except CheckpointError as error:
            faults.extend(error.faults)
            return {}

    def prepare(arrays: Arrays) -> Arrays:
        for name in list(arrays):
            array = arrays.pop(name)  # held once, also while it is cast
            if array.dtype != layout[name].dtype:
                if known and (fault := reader.fault(name, array)):
                    faults.append(fault)
                try:
                    array = cast(array, layout[name].dtype, reader.called(name), reader.path)
                except CheckpointError as error:
                    faults.extend(error.faults)
                    continue
            arrays[name] = array
        return arrays

    with ThreadPoolExecutor(2) as pool:
        for arrays in _ahead(pool, load, layout, max(reader.group, writer.group)):
            digests = {name: pool.submit(sha256, array) for name, array in arrays.items()}
            if not faults:
                writer.write(arrays)
            for name, digest in digests.items():
                sums[name] = digest.result()
                kept = reader.stored[name].dtype == layout[name].dtype  # or it was checked before
                if known and kept and (fault := reader.fault(name, arrays[name], sums[name])):
                    faults.append(fault)
                done(name)
    if faults:
        raise CheckpointError(reader.path, faults)
    return sums


def check(reader: Reader, manifest: Manifest, progress: Progress) -> None:
    """Read a whole checkpoint and compare every tensor with its sum.

    Raises:
        CheckpointError: all tensors that are not those of the manifest.
    """
    total = sum(tensor.nbytes for tensor in reader.stored.values())
    done = _counting(progress, "verifying", reader.stored, total)
    # Values that are not finite were refused when the sums were taken.
    load = functools.partial(reader.read_group, finite=False)
    faults = [f"tensor {name} is missing" for name in manifest.tensors if name not in reader.stored]

    def compare(name: str, digest: str | None) -> None:
        tensor = reader.stored[name]
        if digest and (fault := manifest.check(name, tensor, digest)):
            faults.append(fault)
        if digest:
            done(name)

    with ThreadPoolExecutor(2) as pool:
        names = list(reader.stored)
        left = dict(reader.stored)
        for name, digest in zip(names, pool.map(reader.sum_of, names), strict=True):
            compare(name, digest)
            if digest:
                del left[name]
        for arrays in _ahead(pool, load, left, reader.group):
            digests = {name: pool.submit(sha256, array) for name, array in arrays.items()}
            for name, found in digests.items():
                compare(name, found.result())
    if faults:
        raise CheckpointError(reader.path, faults)


def _ahead(
    pool: ThreadPoolExecutor,
    load: Callable[[list[str]], Arrays],
    stored: Mapping[str, Stored],
    limit: int,
) -> Iterator[Arrays]:
    """Each group of tensors; while one is worked on the next is read, unless it is large."""
    pending: Future[Arrays] | None = None
    planned = list(groups(stored, limit))
    for group, following in itertools.zip_longest(planned, planned[1:]):
        arrays = pending.result() if pending else load(group)
        size = sum(stored[name].nbytes for name in following or ())
        ahead = following and limit <= GROUP and size <= _READ_AHEAD
        pending = pool.submit(load, following) if following and ahead else None
        yield arrays
        arrays.clear()
        trim()


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
