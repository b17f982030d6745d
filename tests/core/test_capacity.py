"""Capacities of the cache: powers of two times 64, cut off at the longest sequence."""

from __future__ import annotations

import pytest

from diy_core.capacity import SMALLEST, capacity_for


@pytest.mark.parametrize(
    ("length", "limit", "capacity"),
    [
        (0, 4096, 64),
        (1, 4096, 64),
        (64, 4096, 64),
        (65, 4096, 128),
        (128, 4096, 128),
        (129, 4096, 256),
        (4096, 4096, 4096),
        (1, 10, 10),
        (65, 100, 100),
        (100, 100, 100),
        (129, 200, 200),
    ],
)
def test_the_smallest_capacity_that_holds_a_length(length: int, limit: int, capacity: int) -> None:
    assert capacity_for(length, limit) == capacity


def test_few_shapes_are_ever_compiled() -> None:
    assert SMALLEST == 64
    assert {capacity_for(n, 2000) for n in range(2001)} == {64, 128, 256, 512, 1024, 2000}


def test_a_length_beyond_the_longest_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"101 tokens is beyond max_position_embeddings \(100\)"):
        capacity_for(101, 100)
