"""One shard of work: its documents read, tokenised, and kept in a file until all are there.

A shard's file is written under another name, synced and renamed, so what has the name is whole.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.data.chats import NothingToLearn
from diy_core.data.counts import Counts
from diy_core.data.documents import Documents
from diy_core.data.encoding import Encoder
from diy_core.data.files import DTYPES, FLAGS, DataError, token_dtype
from diy_core.data.sources import Part
from diy_core.disk import room_for

# What to do on a full disk.
MORE_ROOM = "Free some there, then start again: the shards that are finished are kept"

_NAMED = 5  # of documents with the same fault, beside the first


@dataclass(frozen=True)
class Reading:
    """How sources are read: see `prepare`."""

    separator: str | None
    field: str | None


@dataclass(frozen=True)
class Shard:
    """The tokenised documents of one shard.

    Attributes:
        tokens: uint16 or uint32, all documents one after the other.
        lengths: int64, tokens of each document.
        hashes: uint64, of each document's tokens: equal documents have equal ones.
        counted: uint8, as many as tokens, or none where the shard holds no chat.
        report: uint8, the text of `Counts.to_json`.
    """

    tokens: NDArray[np.unsignedinteger]
    lengths: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    counted: NDArray[np.uint8]
    report: NDArray[np.uint8]

    @property
    def counts(self) -> Counts:
        """What became of the records that the shard was made of."""
        return Counts.from_json(self.report.tobytes().decode())


def shard_file(folder: Path, index: int) -> Path:
    """Where the shard of this number is kept."""
    return folder / f"{index:08d}.npz"


def tokenise(parts: Sequence[Part], encoder: Encoder, reader: Documents) -> Shard:
    """Read and encode the documents of a shard.

    Args:
        parts: of the shard.
        encoder: of the tokenizer.
        reader: one for many shards, as it keeps packed files open; its counts begin anew.

    Raises:
        DataError: a document that cannot be read or encoded; it names the place. Documents in
            which nothing counts are named together.
    """
    rows, flags, hashes = [], [], []
    unlearnt: list[tuple[str, NothingToLearn]] = []
    reader.counts = Counts()
    known: dict[tuple[str, str], bool] = {}  # for each shard anew: whoever makes it, it is the same
    for part in parts:
        for where, document in reader.read(part):
            try:
                ids, counted = encoder.encode(document)
                reader.counts.pass_over_columns(encoder.unread(document, known))
            except NothingToLearn as error:
                unlearnt.append((where, error))
                continue
            except ValueError as error:
                raise DataError(where, str(error)) from error
            if ids.size:
                rows.append(ids)
                flags.append(counted)
                digest = hashlib.blake2b(ids.astype("<u4").tobytes(), digest_size=8).digest()
                hashes.append(int.from_bytes(digest, "little"))
    if unlearnt:
        raise _nothing_to_learn(unlearnt)
    dtype = DTYPES[token_dtype(encoder.vocab_size)]
    chats = any(counted is not None for counted in flags)
    every = [
        np.ones(row.size, FLAGS) if counted is None else counted
        for row, counted in zip(rows, flags, strict=True)
        if chats
    ]
    return Shard(
        tokens=np.concatenate([np.empty(0, dtype), *(row.astype(dtype) for row in rows)]),
        lengths=np.array([row.size for row in rows], dtype=np.int64),
        hashes=np.array(hashes, dtype=np.uint64),
        counted=np.concatenate([np.empty(0, FLAGS), *every]),
        report=np.frombuffer(reader.counts.to_json().encode(), np.uint8),
    )


def _nothing_to_learn(found: Sequence[tuple[str, NothingToLearn]]) -> DataError:
    """What is said of documents in which nothing counts."""
    (where, error), *others = found
    fault = f"{error}, so there is nothing to learn from it: remove it, or give it an answer"
    if others:
        listed = "; ".join(place for place, _ in others[:_NAMED])
        more = "; ..." if others[_NAMED:] else ""
        fault += f". The same is so of {len(others):,} more that were read: {listed}{more}"
    return DataError(where, fault)


def save(shard: Shard, file: Path) -> None:
    """Write a shard's file, whole or not at all.

    Raises:
        DiskFull: there is no room for it.
    """
    temporary = file.with_suffix(".tmp")
    arrays: dict[str, NDArray[Any]] = vars(shard)
    with room_for(file, sum(array.nbytes for array in arrays.values()), MORE_ROOM):
        try:
            with temporary.open("wb") as handle:
                np.savez(handle, allow_pickle=False, **arrays)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def load(file: Path, *names: str) -> Shard:
    """Read a shard's file; if attributes are named, only those, and the others are empty."""
    with np.load(file) as arrays:
        found: dict[str, NDArray[Any]] = {
            name: arrays[name] if name in names or not names else np.empty(0, np.uint8)
            for name in Shard.__dataclass_fields__
        }
    return Shard(**found)


def is_whole(file: Path) -> bool:
    """Whether a shard's file is there and has its end."""
    return zipfile.is_zipfile(file)
