"""Packed rows: which documents, where, and in the order of the logits."""

from __future__ import annotations

import numpy as np
import pytest

from parity.packing import Packed
from parity.plan import Plan
from tests.oracles import tiny

SHARES = ((20, 13, 31), (1, 40, 23))


@pytest.mark.parametrize("limit", [2, 5, 40, 64, 500])
def test_the_documents_are_the_rows_cut_up(limit: int) -> None:
    packed = Packed.make(tiny(max_position_embeddings=limit), SHARES, 0)
    documents = packed.documents
    assert np.array_equal(documents.ids[documents.valid], packed.ids.ravel())
    assert packed.ids.shape == packed.segments.shape == (2, min(limit, 64))
    assert (documents.lengths > 0).all()
    numbers = packed.segments.ravel()
    assert len(documents.lengths) == sum(own.max() + 1 for own in packed.segments)
    assert (np.diff(numbers) <= 1).all()


def test_the_default_has_documents_of_one_token_and_of_many() -> None:
    packed = Packed.make(tiny(max_position_embeddings=500), Plan().packed, 0)
    assert packed.documents.lengths.tolist() == [20, 13, 31, 1, 40, 23, 7, 2, 11, 5, 39]
    assert packed.reach == "11 documents in 3 rows, 0-39"
