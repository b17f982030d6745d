"""How large a key/value cache is: powers of two times 64, so that few shapes are ever compiled."""

from __future__ import annotations

SMALLEST = 64


def capacity_for(length: int, max_position_embeddings: int) -> int:
    """The smallest capacity that holds `length` tokens; never past `max_position_embeddings`.

    Raises:
        ValueError: `length` is beyond `max_position_embeddings`.
    """
    if length > max_position_embeddings:
        raise ValueError(
            f"a sequence of {length} tokens is beyond max_position_embeddings "
            f"({max_position_embeddings})"
        )
    capacity = SMALLEST
    while capacity < length:
        capacity *= 2
    return min(capacity, max_position_embeddings)
