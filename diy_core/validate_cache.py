"""Checks of a key/value cache that users hand in: shapes, dtypes, and room for what is new."""

from __future__ import annotations

import contextlib
import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_core.validate import is_integer

WRONG = -1  # the position of a row that a compiled call could not refuse: it is wrong from then on


@dataclasses.dataclass(frozen=True)
class CacheLayer:
    """Shapes and dtypes of one layer of a key/value cache, as a twin hands them to the check."""

    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    key_dtype: str
    value_dtype: str
    position_shape: tuple[int, ...]
    position_dtype: str


def check_size(batch_size: Any, max_length: Any) -> tuple[int, int]:
    """How many rows a new cache has, and how many tokens a row is to hold.

    Raises:
        ValueError: something else than an integer, no row, or less than no token.
    """
    return _count("batch_size", batch_size, 1), _count("max_length", max_length, 0)


def _count(name: str, value: Any, least: int) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value  # also while torch compiles, where it may stand for any number
    number = None
    if not isinstance(value, (bool, np.bool_)):
        with contextlib.suppress(TypeError):
            number = operator.index(value)
    if number is None or number < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r:.100}")
    return number


def check_layers(past_key_values: Any, arrays: type | tuple[type, ...]) -> None:
    """One `({"key": array, "value": array}, position)` per layer.

    Args:
        past_key_values: what was handed in.
        arrays: what counts as an array.

    Raises:
        ValueError: anything else, such as the cache of another library.
    """
    layers = past_key_values if isinstance(past_key_values, (list, tuple)) else None
    if layers is None:
        raise ValueError(
            "past_key_values must be a list with one layer after the other, as the model returns "
            f"it or init_cache makes it, got {type(past_key_values).__name__}"
        )
    for index, layer in enumerate(layers):
        is_pair = isinstance(layer, (list, tuple)) and len(layer) == 2
        cached = layer[0] if is_pair else None
        if not isinstance(cached, Mapping) or {"key", "value"} != set(cached):
            raise ValueError(
                f'past_key_values[{index}] must be a pair of {{"key": array, "value": array}} and '
                f"a position, as the model returns it or init_cache makes it, got {_form(layer)}"
            )
        for name, array in cached.items():
            if not isinstance(array, arrays):
                kind = f"{type(array).__module__.partition('.')[0]}.{type(array).__name__}"
                raise ValueError(
                    f"past_key_values[{index}] {name} must be an array of this model's framework, "
                    f"got {kind}: a cache goes on in the model that began it"
                )


def _form(layer: Any) -> str:
    inner = layer if isinstance(layer, (list, tuple)) else ()
    names = ", ".join(type(item).__name__ for item in inner[:4])
    return f"{type(layer).__name__} ({names})" if inner else type(layer).__name__


def check_cache(
    layers: Sequence[CacheLayer], config: DIYConfig, ids_shape: Sequence[int], dtype: str
) -> None:
    """One (B, K, T, H) key and value per layer, all of one capacity T, positions int (B,).

    Raises:
        ValueError: the wrong number of layers, batch, heads, head size, or dtype.
    """
    batch = ids_shape[0]
    if len(layers) != config.num_hidden_layers:
        raise ValueError(
            f"past_key_values has {len(layers)} layers, the model has {config.num_hidden_layers}"
        )
    capacity = layers[0].key_shape[2] if len(layers[0].key_shape) == 4 else 0
    wanted = (batch, config.kv_heads, capacity, config.head_size)
    for index, layer in enumerate(layers):
        where = f"past_key_values[{index}]"
        for name, shape, kind in (
            ("key", layer.key_shape, layer.key_dtype),
            ("value", layer.value_shape, layer.value_dtype),
        ):
            if shape != wanted or capacity == 0:
                raise ValueError(
                    f"{where} {name} must have shape (batch {batch}, key/value heads "
                    f"{config.kv_heads}, capacity, head_dim {config.head_size}) with one capacity "
                    f"for all layers, got {shape}"
                )
            if kind != dtype:
                raise ValueError(f"{where} {name} has dtype {kind}, the model computes in {dtype}")
        if layer.position_shape not in ((), (batch,)) or not is_integer(layer.position_dtype):
            raise ValueError(
                f"{where} position must be an integer or integers of shape ({batch},), got "
                f"{layer.position_dtype} {layer.position_shape}"
            )


def check_room(
    positions: Sequence[NDArray[Any]], lengths: NDArray[Any], capacity: int, limit: int
) -> int:
    """The capacity that this call needs: cached tokens plus new ones, of the longest row.

    Args:
        positions: (B,) integers of each layer.
        lengths: (B,) new tokens.
        capacity: slots of the cache.
        limit: `max_position_embeddings`.

    Raises:
        ValueError: a position that is negative or beyond the cache, layers that disagree, or a row
            that ends beyond `max_position_embeddings`.
    """
    first = positions[0]
    for index, position in enumerate(positions):
        for row in np.flatnonzero(position != first).tolist():
            raise ValueError(
                f"past_key_values stands at different positions in row {row}: "
                f"{int(first[row])} in layer 0 and {int(position[row])} in layer {index}"
            )
    for row in np.flatnonzero(first < 0).tolist():
        marked = "; a compiled call marks a row so that had no room or was wrong"
        raise ValueError(
            f"past_key_values position of row {row} is negative ({int(first[row])})"
            f"{marked if first[row] == WRONG else ''}"
        )
    ends = first.astype(np.int64) + lengths
    row = int(ends.argmax())
    if ends[row] > limit:
        raise ValueError(
            f"row {row} has {int(first[row])} cached and {int(lengths[row])} new tokens: a "
            f"sequence of {int(ends[row])} is beyond max_position_embeddings ({limit})"
        )
    for row in np.flatnonzero(first > capacity).tolist():
        raise ValueError(
            f"past_key_values position of row {row} is {int(first[row])}, beyond the {capacity} "
            "slots of the cache"
        )
    return int(ends[row])
