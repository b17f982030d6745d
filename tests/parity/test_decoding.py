"""In which pieces a ragged batch is decoded: every token once, in order."""

from __future__ import annotations

import numpy as np
import pytest

from parity.check.decoding import Decoding
from parity.random_models import small_configs

CONFIG = small_configs()["gqa"]


@pytest.mark.parametrize("widths", [None, (97, 30, 130, 64), (1, 1), (500, 3)])
@pytest.mark.parametrize("positions", [4, 100, 320])
def test_every_token_is_fed_once_and_in_order(
    positions: int, widths: tuple[int, ...] | None
) -> None:
    decoding = Decoding.make(CONFIG, (3, 200, 77), positions, seed=1)
    if widths:
        decoding = decoding.in_chunks(widths)
    batch = decoding.batch
    fed: list[list[int]] = [[] for _ in batch.lengths]
    calls = list(decoding.chunks())
    for ids, new in calls:
        assert ids.shape[0] == len(fed)
        assert (new <= ids.shape[1]).all()
        for row, count in enumerate(new):
            fed[row] += ids[row, :count].tolist()
    expected = [batch.ids[row, :length].tolist() for row, length in enumerate(batch.lengths)]
    assert fed == expected


def test_chunks_are_uneven_also_among_the_rows() -> None:
    decoding = Decoding.make(CONFIG, (3, 200, 77), 320, seed=1).in_chunks((97, 30, 130, 64))
    counts = np.array([new for _, new in decoding.chunks()])
    assert counts[:4].tolist() == [[97, 48, 24], [0, 30, 30], [130, 0, 130], [64, 64, 0]]
    waits = (counts == 0) & (counts[::-1].cumsum(axis=0)[::-1] > 0)
    assert waits.any(axis=0).all()  # each row once takes no token, and goes on
    assert (counts.sum(axis=0) == decoding.batch.lengths).all()


def test_token_by_token_is_a_prompt_a_second_chunk_and_single_tokens() -> None:
    calls = list(Decoding.make(CONFIG, (3, 20), 100, seed=1).chunks())
    assert [ids.shape[1] for ids, _ in calls[:3]] == [20, 64, 1]
    assert {ids.shape[1] for ids, _ in calls[2:]} == {1}


def test_a_token_is_named_by_its_row_and_position() -> None:
    batch = Decoding.make(CONFIG, (3, 20), 40, seed=1).batch
    assert batch.lengths.tolist() == [40, 11]
    assert batch.place(39) == "row 0, position 39"
    assert batch.place(42) == "row 1, position 2"
    one, other = batch.rows()
    assert (one.ids.shape, other.ids.shape) == ((1, 40), (1, 11))
    assert other.ids.tolist() == batch.ids[1:, :11].tolist()
