"""From what users pass to what the model computes with: checks, conversion, lengths, cache room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from diy_core import validate, validate_cache
from diy_core.arrays import as_host_array, renumbered, signed
from diy_core.config import DIYConfig
from diy_jax.cache import PastKeyValues, empty_cache, grow_cache
from diy_jax.random import raw_key

_INT32 = np.iinfo(np.int32)


def host_values(x: Any, wait: bool = False) -> NDArray[Any] | None:
    """The values as numpy, or None where they cannot be seen.

    They cannot under `jit`, `grad` or `vmap`; and on an accelerator, where a look would wait for
    the device, only `wait=True` looks.
    """
    if isinstance(x, jax.core.Tracer):
        return None
    if isinstance(x, jax.Array):
        on_host = all(device.platform == "cpu" for device in x.devices())
        if not x.is_fully_addressable or not (on_host or wait):
            return None
    return as_numpy(x)


def as_numpy(x: Any) -> NDArray[Any]:
    """The values as numpy."""
    return np.asarray(x)


def dtype_name(dtype: Any) -> str:
    """`float32` for `jnp.float32`: the name that numpy and torch use."""
    return str(np.dtype(dtype))


def as_array(name: str, value: Any) -> Any:
    """JAX arrays and tracers as they are; lists and the like as a numpy array."""
    return value if isinstance(value, jax.Array) else signed(as_host_array(name, value))


def _narrow(x: Any) -> Array:
    """As int32; integers that do not fit stay out of range, and are not cut to others."""
    if np.iinfo(x.dtype).max > _INT32.max:
        x = x.clip(None if x.dtype.kind == "u" else _INT32.min, _INT32.max)
    return jnp.asarray(x, jnp.int32)


def prepare_input_ids(input_ids: Any, config: DIYConfig) -> Array:
    """Checked token ids, int32 (B, S).

    Raises:
        ValueError: not integers, not (B, S), out of the vocabulary, or too many columns.
    """
    ids = as_array("input_ids", input_ids)
    values = host_values(ids)
    validate.check_input_ids(ids.shape, dtype_name(ids.dtype), values, config)
    return _narrow(ids)


def lengths_from_mask(attention_mask: Any, seq_lengths: Any, ids: Array, has_cache: bool) -> Any:
    """`seq_lengths` (B,) out of a mask of ones followed by zeros; the given lengths without one.

    Raises:
        ValueError: any other mask, or a mask and lengths that disagree. Where values cannot be
            seen, the length of such a row is -1.
    """
    if attention_mask is None:
        return seq_lengths
    mask = as_array("attention_mask", attention_mask)
    values = host_values(mask)
    validate.check_attention_mask(mask.shape, values, ids.shape, has_cache)
    lengths = _lengths_of_rows(jnp.asarray(mask))
    if seq_lengths is None:
        return lengths
    given = as_array("seq_lengths", seq_lengths)
    validate.check_seq_lengths(
        given.shape,
        dtype_name(given.dtype),
        host_values(given),
        ids.shape,
        has_cache,
        mask_lengths=None if values is None else values.astype(np.int64).sum(axis=1),
    )
    return jnp.where(lengths == _narrow(given), lengths, -1)


def _lengths_of_rows(mask: Array) -> Array:
    ones = mask.astype(bool)
    lengths = ones.sum(axis=1, dtype=jnp.int32)
    column = jnp.arange(mask.shape[1], dtype=jnp.int32)
    straight = (ones == (column[None, :] < lengths[:, None])) & (mask == ones.astype(mask.dtype))
    return jnp.where(straight.all(axis=1), lengths, -1)


def prepare_lengths(seq_lengths: Any, ids: Array, has_cache: bool) -> Array:
    """Checked lengths, int32 (B,); the whole row where none are given.

    Raises:
        ValueError: not integers, not (B,), out of range, or 0 without a cache.
    """
    if seq_lengths is None:
        return jnp.full((ids.shape[0],), ids.shape[1], jnp.int32)
    lengths = as_array("seq_lengths", seq_lengths)
    validate.check_seq_lengths(
        lengths.shape, dtype_name(lengths.dtype), host_values(lengths), ids.shape, has_cache
    )
    return _narrow(lengths)


def prepare_cache(
    past_key_values: Any,
    config: DIYConfig,
    ids: Array,
    lengths: Array,
    dtype: Any,
) -> PastKeyValues:
    """The cache of this call: checked, with positions per row, and with room for the new tokens.

    Raises:
        ValueError: a cache that does not fit the model or the batch, or a row that would end
            beyond `max_position_embeddings`.
    """
    batch, columns = ids.shape
    if past_key_values is None:
        return empty_cache(config, batch, columns, dtype)
    validate_cache.check_layers(past_key_values, (jax.Array, np.ndarray))
    layers = [
        (cached, as_array("past_key_values position", position))
        for cached, position in past_key_values
    ]
    described = [
        validate_cache.CacheLayer(
            tuple(cached["key"].shape),
            tuple(cached["value"].shape),
            dtype_name(cached["key"].dtype),
            dtype_name(cached["value"].dtype),
            tuple(position.shape),
            dtype_name(position.dtype),
        )
        for cached, position in layers
    ]
    validate_cache.check_cache(described, config, ids.shape, dtype_name(dtype))
    layers = [
        (cached, jnp.broadcast_to(_narrow(position), (batch,))) for cached, position in layers
    ]
    # Growing needs the real counts, so this look waits for an accelerator.
    positions = [host_values(position, wait=True) for _, position in layers]
    new, limit = host_values(lengths, wait=True), config.max_position_embeddings
    seen = [position for position in positions if position is not None]
    if len(seen) < len(positions) or new is None:
        return layers
    capacity = layers[0][0]["key"].shape[2]
    return grow_cache(layers, validate_cache.check_room(seen, new, capacity, limit), limit)


def prepare_labels(labels: Any, hidden_shape: Sequence[int]) -> Any:
    """Labels of the right form, integers (B, S); `wide_labels` makes them ready to compare.

    Raises:
        ValueError: not integers, or not one for each token.
    """
    if not isinstance(labels, jax.Array):
        advice = f"pad the rows on the right with {validate.IGNORED}"
        labels = signed(as_host_array("labels", labels, advice))
    validate.check_label_form(labels.shape, dtype_name(labels.dtype), hidden_shape)
    return labels


def wide_labels(labels: Any) -> Array:
    """As int32, where -100 is not one of the token ids, as it is among small unsigned integers."""
    return _narrow(labels)


def prepare_segments(segment_ids: Any, ids: Array, cached: bool) -> Array | None:
    """Checked segments, (B, S), or None.

    Raises:
        ValueError: not integers, not the shape of the ids, or together with a cache.
    """
    if segment_ids is None:
        return None
    segments = segment_ids
    if not isinstance(segments, jax.Array):
        segments = signed(renumbered(as_host_array("segment_ids", segments)))
    validate.check_segment_ids(segments.shape, dtype_name(segments.dtype), ids.shape, cached)
    return jnp.asarray(segments)


def prepare_dropout_key(dropout_key: Any, cached: bool) -> Array | None:
    """Checked key, uint32 (2,) (typed keys become that), or None.

    Raises:
        ValueError: no key, or together with a cache.
    """
    if dropout_key is None:
        return None
    key = dropout_key
    if not isinstance(key, jax.Array):
        key = as_host_array("dropout_key", key)
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = raw_key(key)
    validate.check_dropout_key(key.shape, dtype_name(key.dtype), cached)
    return jnp.asarray(key)
