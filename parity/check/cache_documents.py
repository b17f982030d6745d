"""What is fed through the cache to see gradients go through it: ragged documents and a prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from parity.batch import Batch, random_ids
from parity.check.decoding import Decoding

ORDER = ("key", "value")
_STD = 1.0  # of the keys and values of a prefix
Prefix = list[dict[str, NDArray[np.float64]]]
Piece = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]


@dataclasses.dataclass
class Document:
    """Ragged documents, the chunks in which they are fed, and a prefix to be learned.

    Attributes:
        decoding: the documents, (B, S), and the chunks, of one width. The first chunk of each row
            has a size of its own.
        prefix: of each layer `key` and `value`, (B, K, P, H).
    """

    decoding: Decoding
    prefix: Prefix

    @classmethod
    def make(
        cls, config: DIYConfig, rows: Sequence[int], chunk: int, length: int, seed: int
    ) -> Document:
        """Random tokens and a random prefix, as long as `max_position_embeddings` has room.

        Args:
            config: of the model.
            rows: how many tokens each row has.
            chunk: of so many tokens; the first one has fewer in the later rows.
            length: of the prefix.
            seed: of all that is random.
        """
        limit = config.max_position_embeddings
        length = min(length, max(limit // 4, 1))
        lengths = np.clip(rows, 2, max(limit - length, 2)).astype(np.int32)
        generator = np.random.default_rng([seed, 2])
        shape = len(lengths), int(lengths.max())
        batch = Batch(random_ids(generator, config.vocab_size, shape), lengths)
        chunk = min(chunk, -(-shape[1] // 3))  # or nothing would be cut off
        first = [max(1, chunk >> row) for row in range(len(lengths))]
        prompts = np.minimum(first, lengths).astype(np.int32)
        slots = len(lengths), config.kv_heads, length, config.head_size
        prefix = [
            {name: _STD * generator.normal(size=slots) for name in ORDER}
            for _ in range(config.num_hidden_layers)
        ]
        return cls(Decoding(batch, prompts, (chunk,)), prefix)

    @property
    def batch(self) -> Batch:
        """The documents."""
        return self.decoding.batch

    @property
    def columns(self) -> int:
        """How many tokens a cache must have room for: the prefix, and the longest document."""
        return self.prefix[0]["key"].shape[2] + self.batch.ids.shape[1]

    @property
    def chunks(self) -> list[Piece]:
        """Ids (B, S), how many of them count, and the labels, -1 where there is none, by chunk."""
        found, start = [], np.zeros_like(self.batch.lengths)
        last = self.batch.ids.shape[1] - 1
        for ids, new in self.decoding.chunks():
            columns = np.arange(ids.shape[1])[None, :]
            index = np.minimum(start[:, None] + columns, last)
            labels = np.take_along_axis(self.batch.labels, index, axis=1)
            found.append((ids, new, np.where(columns < new[:, None], labels, -1)))
            start = start + new
        return found

    @property
    def labelled(self) -> int:
        """How many labels there are in all chunks."""
        return int((self.batch.labels >= 0).sum())


def by_row(pieces: Sequence[Piece], parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """What stands at the valid tokens of all pieces, row by row, (tokens, D)."""

    def in_order() -> Iterator[NDArray[Any]]:
        for row in range(len(pieces[0][1])):
            for (_, new, _), part in zip(pieces, parts, strict=True):
                yield part[row, : new[row]]

    return np.concatenate(list(in_order()))
