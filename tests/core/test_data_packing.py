"""Packing: nothing lost, nothing cut that fits, and the bins that best-fit decreasing makes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diy_core.data.packing import arrange, best_fit

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """Best-fit decreasing as the textbook says it."""
    room: list[int] = []
    bins = [0] * len(lengths)
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [(left, number) for number, left in enumerate(room) if left >= lengths[item]]
        if fitting:
            number = min(fitting)[1]
        else:
            number = len(room)
            room.append(capacity)
        room[number] -= lengths[item]
        bins[item] = number
    return bins


def fillings(lengths: list[int], bins: list[int]) -> list[list[int]]:
    """What is in each bin, without the names of bins and items."""
    return sorted(
        sorted(length for length, b in zip(lengths, bins, strict=True) if b == number)
        for number in set(bins)
    )


@settings(deadline=None, max_examples=300)
@given(lengths=LENGTHS, more=st.integers(0, 60))
def test_the_bins_are_those_of_best_fit_decreasing(lengths: list[int], more: int) -> None:
    capacity = max(lengths) + more
    bins = best_fit(np.array(lengths), capacity).tolist()
    filled = np.bincount(bins, weights=lengths)
    assert filled.max() <= capacity
    assert (filled > 0).all()
    reference = one_by_one(lengths, capacity)
    assert len(set(bins)) == len(set(reference))
    # Which of several equally full bins is taken is free, and decides nothing about the room left.
    assert sorted(filled) == sorted(np.bincount(reference, weights=lengths))


def test_a_case_one_can_read() -> None:
    #           5 alone with 3+2; 4+4; 3+3+2
    bins = best_fit(np.array([3, 5, 4, 3, 2, 4, 3, 2]), 8).tolist()
    assert fillings([3, 5, 4, 3, 2, 4, 3, 2], bins) == [[2], [2, 3, 3], [3, 5], [4, 4]]


@settings(deadline=None, max_examples=300)
@given(sizes=LENGTHS, length=st.integers(1, 50), packing=st.booleans())
def test_every_token_is_in_one_row_and_nothing_that_fits_is_cut(
    sizes: list[int], length: int, packing: bool
) -> None:
    ends = np.cumsum(sizes)
    rows = arrange(ends, length, packing)
    covered = np.concatenate(
        [np.arange(s, s + n) for s, n in zip(rows.starts, rows.lengths, strict=True)]
    )
    assert sorted(covered) == list(range(ends[-1]))
    per_row = [rows.lengths[a:b].sum() for a, b in zip(rows.first, rows.first[1:], strict=False)]
    assert len(per_row) == len(rows)
    assert all(0 < n <= length for n in per_row)
    assert len(rows.starts) == sum(-(-size // length) for size in sizes)
    piece_ends = rows.starts + rows.lengths
    assert (rows.final == np.isin(piece_ends, ends)).all()
    firsts = rows.starts[rows.first[:-1]]
    assert (np.diff(firsts) > 0).all()  # rows in the order of the documents
    if not packing:
        assert len(rows) == len(rows.starts)


@pytest.mark.parametrize("length", [16, 100, 1000])
def test_little_is_padding(length: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 2 * length, 2000)
    rows = arrange(np.cumsum(sizes), length, packing=True)
    assert len(rows) * length < 1.01 * sizes.sum() + length
