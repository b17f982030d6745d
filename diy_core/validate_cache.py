"""Checks of a key/value cache that users hand in: shapes, dtypes, and room for what is new."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_core.validate import is_integer


@dataclasses.dataclass(frozen=True)
class CacheLayer:
    """Shapes and dtypes of one layer of a key/value cache, as a twin hands them to the check."""

    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    key_dtype: str
    value_dtype: str
    position_shape: tuple[int, ...]
    position_dtype: str


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


def check_room(positions: NDArray[Any], lengths: NDArray[Any], limit: int) -> int:
    """The capacity that this call needs: cached tokens plus new ones, of the longest row.

    Raises:
        ValueError: a negative position, or a row that ends beyond `max_position_embeddings`.
    """
    if (positions < 0).any():
        row = int(np.flatnonzero(positions < 0)[0])
        raise ValueError(
            f"past_key_values position of row {row} is negative ({int(positions[row])})"
        )
    ends = positions.astype(np.int64) + lengths
    row = int(ends.argmax())
    if ends[row] > limit:
        raise ValueError(
            f"row {row} has {int(positions[row])} cached and {int(lengths[row])} new tokens: a "
            f"sequence of {int(ends[row])} is beyond max_position_embeddings ({limit})"
        )
    return int(ends[row])
