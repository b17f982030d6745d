"""The key/value cache: one `(cached, position)` per layer, each row with a position of its own.

`cached` is `{"key": (B, K, T, H), "value": (B, K, T, H)}` with T slots; `position` is int32 (B,):
how many tokens each row has cached. Slot t of a row holds its token t, so slots from `position` on
are free.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jaxtyping import Array, Float, Int

from diy_core.capacity import SMALLEST, capacity_for
from diy_core.config import DIYConfig, require_config
from diy_core.validate_cache import check_size
from diy_jax.tensors import float_dtype, require_held

Cached = dict[str, Array]
PastKeyValues = list[tuple[Cached, Array]]


def init_cache(
    config: DIYConfig,
    batch_size: int,
    max_length: int = SMALLEST,
    dtype: Any = jnp.float32,
) -> PastKeyValues:
    """An empty cache with room for `max_length` tokens a row, rounded up to a capacity.

    An eager call gives it more room where it needs some. `jit` cannot: there, a row that has no
    room left gets logits that are NaN, so compile for the longest sequence.

    Each layer has arrays of its own, positions too, so that `jit` can take the cache as a donation.

    Args:
        config: of the model.
        batch_size: B, the rows.
        max_length: tokens of a row.
        dtype: of the keys and values, that of the model: one of any library, or its name.

    Returns:
        For each layer a pair: a dict of `key` and `value`, zeros (B, K, T, H) with the capacity T;
        and how many tokens each row holds, zeros of int32 (B,).

    Raises:
        ValueError: `max_length` is beyond `max_position_embeddings`; sizes that are none; or a
            dtype that weights cannot have, or that JAX would cut.
        TypeError: something else than a config.
    """
    require_config(config)
    if is_symbolic_dim(batch_size):  # while `jax.export` traces for any number of rows
        _, max_length = check_size(1, max_length)
    else:
        batch_size, max_length = check_size(batch_size, max_length)
    return empty_cache(config, batch_size, max_length, require_held(float_dtype(dtype)))


def empty_cache(
    config: DIYConfig,
    batch_size: Any,  # also a dimension of `jax.export` that is not known yet
    max_length: int,
    dtype: Any,
) -> PastKeyValues:
    """What `init_cache` returns, for what a model has checked; compiled code may call it, too."""
    capacity = capacity_for(max_length, config.max_position_embeddings)
    shape = (batch_size, config.kv_heads, capacity, config.head_size)
    return [
        (
            {name: jnp.zeros(shape, dtype) for name in ("key", "value")},
            jnp.zeros(batch_size, jnp.int32),
        )
        for _ in range(config.num_hidden_layers)
    ]


def grow_cache(
    past_key_values: PastKeyValues, max_length: int, max_position_embeddings: int
) -> PastKeyValues:
    """The same cache with room for `max_length` tokens a row; unchanged where it has the room.

    Args:
        past_key_values: the cache; it is not changed.
        max_length: tokens of a row, rounded up to a capacity.
        max_position_embeddings: of the model.

    Returns:
        The cache, as `init_cache` describes it.

    Raises:
        ValueError: `max_length` is beyond `max_position_embeddings`.
    """
    capacity = capacity_for(max_length, max_position_embeddings)
    missing = capacity - past_key_values[0][0]["key"].shape[2]
    if missing <= 0:
        return past_key_values
    pad = ((0, 0), (0, 0), (0, missing), (0, 0))
    return [
        ({name: jnp.pad(old, pad) for name, old in cached.items()}, position)
        for cached, position in past_key_values
    ]


def update_cache(
    cached: Cached,
    position: Int[Array, " B"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    seq_lengths: Int[Array, " B"],
) -> tuple[Cached, Int[Array, " B"]]:
    """Write the first `seq_lengths` columns of each row behind its `position`.

    Under `jit`, where nothing can grow, columns beyond the capacity are dropped; the model makes
    such a row NaN.

    Returns:
        The cache and its new positions, `position + seq_lengths`.
    """
    capacity, columns = cached["key"].shape[2], key.shape[2]
    # Padded columns must leave no trace. They are sent to a slot that does not exist, and dropped;
    # `dynamic_update_slice` would clamp them onto live slots.
    column = jnp.arange(columns, dtype=jnp.int32)[None, :]
    slot = jnp.where(column < seq_lengths[:, None], position[:, None] + column, capacity)

    def write(old: Array, new: Array, slots: Array) -> Array:
        return old.at[:, slots, :].set(new, mode="drop")

    updated = {
        name: jax.vmap(write)(cached[name], new, slot)
        for name, new in (("key", key), ("value", value))
    }
    return updated, position + seq_lengths
