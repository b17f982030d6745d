"""Checks of caches, layer by layer; what is refused is refused by name, place and value."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from diy_core import validate_cache
from diy_core.validate_cache import CacheLayer
from tests.core.test_validate import CONFIG, refused

LAYER = CacheLayer((3, 2, 64, 6), (3, 2, 64, 6), "float32", "float32", (3,), "int32")


def check_cache(*layers: CacheLayer) -> None:
    validate_cache.check_cache(layers, CONFIG, (3, 4), "float32")


def test_a_cache_of_the_models_shape_passes() -> None:
    check_cache(LAYER, LAYER)
    check_cache(*[dataclasses.replace(LAYER, position_shape=())] * 2)
    check_cache(*[dataclasses.replace(LAYER, position_dtype="int64")] * 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key_shape": (2, 2, 64, 6)}, r"key must have shape \(batch 3, key/value heads 2, capac"),
        ({"value_shape": (3, 4, 64, 6)}, r"value must have .*got \(3, 4, 64, 6\)"),
        ({"key_shape": (3, 64, 2, 6)}, r"key must have .*got \(3, 64, 2, 6\)"),
        ({"value_shape": (3, 2, 64, 8)}, "value must have .*head_dim 6"),
        ({"key_shape": (3, 2, 128, 6)}, "key must have .* one capacity for all layers"),
        ({"value_shape": (3, 2, 65, 6)}, "value must have .* one capacity for all layers"),
        ({"key_shape": (3, 2, 64)}, "key must have shape"),
        ({"key_dtype": "bfloat16"}, "key has dtype bfloat16, the model computes in float32"),
        ({"value_dtype": "float64"}, "value has dtype float64, the model computes in float32"),
        ({"position_shape": (2,)}, r"integers of shape \(3,\), got int32 \(2,\)"),
        ({"position_shape": (3, 1)}, r"got int32 \(3, 1\)"),
        ({"position_dtype": "float32"}, r"got float32 \(3,\)"),
    ],
)
def test_another_cache_is_refused_by_layer(change: dict[str, Any], words: str) -> None:
    with refused(rf"^past_key_values\[1\] .*{words}"):
        check_cache(LAYER, dataclasses.replace(LAYER, **change))


@pytest.mark.parametrize("shape", [(3, 2, 0, 6), (3, 64, 6), ()])
def test_a_first_layer_without_capacity_is_refused(shape: tuple[int, ...]) -> None:
    layer = dataclasses.replace(LAYER, key_shape=shape, value_shape=shape)
    with refused(r"^past_key_values\[0\] key must have shape"):
        check_cache(layer, layer)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_cache_of_other_depth_is_refused(count: int) -> None:
    with refused(f"past_key_values has {count} layers, the model has 2"):
        check_cache(*[LAYER] * count)


@pytest.mark.parametrize(
    ("positions", "lengths", "needed"),
    [([0, 0], [1, 4], 4), ([3, 1], [1, 4], 5), ([5, 0], [0, 1], 5), ([2, 2], [3, 1], 5)],
)
def test_the_room_of_the_longest_row_is_counted(
    positions: list[int], lengths: list[int], needed: int
) -> None:
    assert check_room([positions] * 2, lengths) == needed


def check_room(positions: list[list[int]], lengths: list[int], capacity: int = 5) -> int:
    rows = [np.array(layer, np.int32) for layer in positions]
    return validate_cache.check_room(rows, np.array(lengths, np.int32), capacity, 5)


def test_a_row_beyond_the_longest_sequence_is_refused() -> None:
    words = "row 1 has 3 cached and 3 new tokens: a sequence of 6 is beyond max_position_embeddings"
    with refused(words):
        check_room([[0, 3]], [4, 3])
    with refused(r"position of row 1 is negative \(-2\)$"):
        check_room([[0, -2]], [1, 1])
    with refused("a sequence of 2147483648 is beyond"):  # and no overflow of int32 hides it
        check_room([[2**31 - 1]], [1])


def test_layers_that_disagree_are_refused() -> None:
    words = "stands at different positions in row 1: 3 in layer 0 and 2 in layer 2"
    with refused(words):
        check_room([[0, 3], [0, 3], [0, 2]], [1, 1])


def test_more_tokens_than_slots_are_refused() -> None:
    assert check_room([[4, 1]], [0, 1], 4) == 4
    with refused("position of row 0 is 4, beyond the 3 slots of the cache"):
        check_room([[4, 1]], [0, 1], 3)


def test_a_row_that_compiled_code_marked_is_told_as_that() -> None:
    with refused("row 0 is negative .-1.; a compiled call marks a row so that had no room"):
        check_room([[-1, 1]], [0, 1])
