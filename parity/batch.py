"""Token ids in rows of different lengths: what the checks feed both twins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def random_ids(
    generator: np.random.Generator, vocab_size: int, shape: tuple[int, int]
) -> NDArray[np.int32]:
    """Ids (B, S) drawn at random, but for the first and the last one that there are.

    Chance would leave those out of a large vocabulary. They stand in row 0: early, in every prompt
    and as labels, and where it is long enough also at its end, where single tokens are decoded.
    """
    ids = generator.integers(0, vocab_size, shape, np.int32)
    with_edges(ids[0], vocab_size)
    return ids


def with_edges(row: NDArray[np.int32], vocab_size: int) -> None:
    """Put the last id and the first one into a row (S,), in place."""
    edges = np.array([vocab_size - 1, 0], np.int32)
    row[1:3] = edges[: len(row[1:3])]
    if len(row) > 4:
        row[-2:] = edges


@dataclasses.dataclass
class Batch:
    """Token ids (B, S), right-padded, and the valid length of each row (B,)."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """True at the tokens, (B, S)."""
        columns: NDArray[np.bool_] = np.arange(self.ids.shape[1])[None, :] < self.lengths[:, None]
        return columns

    @property
    def labels(self) -> NDArray[np.int64]:
        """The next token of each position, -1 where there is none, (B, S)."""
        labels = np.full(self.ids.shape, -1, np.int64)
        labels[:, :-1] = np.where(self.valid[:, 1:], self.ids[:, 1:], -1)
        return labels

    def rows(self) -> Iterator[Batch]:
        """Each row as a batch of its own, without padding."""
        for row, length in enumerate(self.lengths):
            yield Batch(self.ids[row : row + 1, :length], self.lengths[row : row + 1])

    @property
    def reach(self) -> str:
        """How many rows, and the positions of their tokens, in words."""
        rows = "1 row" if len(self.lengths) == 1 else f"{len(self.lengths)} rows"
        return f"{rows}, 0-{int(self.lengths.max()) - 1}"

    def place(self, index: int) -> str:
        """The row and position of the index-th valid token."""
        row, position = np.argwhere(self.valid)[index]
        return f"row {row}, position {position}"
