"""Packed rows: which documents, where, and in the order of the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from parity.check.packing import Packed
from parity.check.plan import Plan
from tests.oracles import tiny

SHARES = ((20, 13, 31), (1, 40, 23))


@pytest.mark.parametrize("limit", [2, 5, 40, 64, 500])
def test_the_documents_are_the_rows_cut_up(limit: int) -> None:
    packed = Packed.make(tiny(max_position_embeddings=limit), SHARES, 0)
    documents = packed.documents
    assert np.array_equal(documents.ids[documents.valid], packed.ids.ravel())
    assert packed.ids.shape == packed.segments.shape == (2, min(limit, 64))
    assert (documents.lengths > 0).all()
    changes = np.diff(packed.segments, axis=1) != 0
    assert len(documents.lengths) == 2 + changes.sum()
    starts = np.concatenate([np.flatnonzero(np.insert(row, 0, True)) for row in changes])
    assert (starts == np.concatenate([np.cumsum(own) - own for own in _by_row(packed)])).all()


def _by_row(packed: Packed) -> list[NDArray[np.int32]]:
    """The lengths of the documents of each row."""
    lengths, columns = packed.documents.lengths, packed.ids.shape[1]
    ends = np.flatnonzero(np.cumsum(lengths) % columns == 0) + 1
    return np.split(lengths, ends[:-1])


@pytest.mark.parametrize(
    "cut",
    [
        lambda numbers: numbers.astype(np.int8),
        lambda numbers: numbers.astype(np.int16),
        lambda numbers: numbers.astype(np.float32),
        lambda numbers: numbers.clip(min=0, max=1 << 20),
    ],
)
def test_neighbours_are_one_number_once_they_are_cut(cut: Callable[..., Any]) -> None:
    packed = Packed.make(tiny(max_position_embeddings=500), Plan().packed, 0)
    row = packed.segments[-1]
    begins = np.diff(row) != 0
    assert (np.diff(cut(row)) != 0).sum() < begins.sum() == 9
    assert any(len(set(own)) < 1 + (np.diff(own) != 0).sum() for own in packed.segments)


def test_the_default_has_documents_of_one_token_and_of_many() -> None:
    packed = Packed.make(tiny(max_position_embeddings=500), Plan().packed, 0)
    assert packed.documents.lengths.tolist() == [
        *(20, 13, 31, 1, 40, 23, 7, 2, 11, 5, 39),
        *(3, 2, 1, 4, 1, 2, 1, 2, 40, 8),
    ]
    assert packed.reach == "21 documents in 4 rows, 0-39"
