"""One shard of work: its documents read and tokenised."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diy_core.data.chats import NothingToLearn
from diy_core.data.counts import Counts
from diy_core.data.documents import Documents
from diy_core.data.encoding import Encoder
from diy_core.data.files import DTYPES, FLAGS, DataError, token_dtype
from diy_core.data.sources import Part

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
    dtype = DTYPES[token_dtype(encoder.vocab_size)]
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
            if not ids.size:
                reader.counts.without_tokens += 1
                continue
            rows.append(ids.astype(dtype))
            flags.append(counted)
            content = ids.astype("<u4", copy=False).data
            digest = hashlib.blake2b(content, digest_size=8).digest()
            hashes.append(int.from_bytes(digest, "little"))
    if unlearnt:
        raise _nothing_to_learn(unlearnt)
    chats = any(counted is not None for counted in flags)
    every = [
        np.ones(row.size, FLAGS) if counted is None else counted
        for row, counted in zip(rows, flags, strict=True)
        if chats
    ]
    return Shard(
        tokens=np.concatenate([np.empty(0, dtype), *rows]),
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
