"""JAX's random numbers, whatever JAX's flags: threefry2x32, a hash of a key and a counter.

Number i of an array is the hash of i under the key, whatever the device, the shape before it or the
order of the draws. So both twins drop the same activations and sample the same tokens.

`jax.random` gives the same numbers as it starts, and others once a flag is switched
(`jax_threefry_partitionable`, `jax_default_prng_impl`, `jax_random_seed_offset`); its default
dtypes, and its keys of large seeds, change with `jax_enable_x64`. Here nothing does.

A key is uint32 (2,), or one of `jax.random.key` (a typed key). A key is used once: for more
numbers, `split` it or `fold_in` what they are for. Keys may be traced.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the counters are
those of `jax.random` with `jax_threefry_partitionable`, its default.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry2x32_p
from jaxtyping import Array


def key(seed: Any) -> Array:
    """The key of a seed, its upper and lower 32 bits.

    `jax.random.key` makes the same in 64-bit mode; in its 32-bit mode it drops the upper bits.

    Args:
        seed: 0 to 2**64 - 1.

    Raises:
        ValueError: a seed out of range.
    """
    seed = operator.index(seed)
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must lie in 0..2**64 - 1, got {seed}")
    return jnp.asarray(np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32))


def raw_key(key: Any) -> Array:
    """The two words of a key, also of a typed one.

    Raises:
        ValueError: not uint32 of shape (2,), or a typed key of another generator.
    """
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        if (kind := jax.random.key_impl(key)) != "threefry2x32":
            raise ValueError(f"a typed key must be of threefry2x32, got {kind}")
        key = jax.random.key_data(key)
    if key.dtype != np.uint32 or key.shape != (2,):
        raise ValueError(
            f"a key is uint32 of shape (2,), as key() makes it; got {key.dtype} {tuple(key.shape)}"
        )
    return jnp.asarray(key)


def fold_in(key: Any, data: Any) -> Array:
    """A new key for each number: which layer, which step.

    Args:
        key: uint32 (2,), or a typed key.
        data: an integer in 0..2**32 - 1, or an array of such integers of any shape.

    Returns:
        uint32 (2,), or (*data.shape, 2).

    Raises:
        ValueError: no key, or an integer out of range (in arrays it wraps).
    """
    if not isinstance(data, (jax.Array, np.ndarray, np.generic)):
        data = operator.index(data)
        if not 0 <= data < 1 << 32:
            raise ValueError(f"data must lie in 0..2**32 - 1, got {data}")
        data = np.uint32(data)
    low = jnp.asarray(data).astype(jnp.uint32)
    return jnp.stack(threefry2x32(key, jnp.zeros_like(low), low), axis=-1)


def split(key: Any, n: int = 2) -> Array:
    """n new keys, uint32 (n, 2): those of `fold_in` with 0 to n - 1."""
    return fold_in(key, jnp.arange(n, dtype=jnp.uint32))


def threefry2x32(key: Any, high: Array, low: Array) -> tuple[Array, Array]:
    """The hash itself, 20 rounds, of the counters high * 2**32 + low.

    Args:
        key: uint32 (2,), or a typed key.
        high: uint32 of any shape.
        low: uint32 of the same shape.

    Returns:
        The two words of each result, uint32.
    """
    words = raw_key(key)
    # Under `vmap` the primitive wants both words of the counters batched, or neither.
    nothing = (high ^ low) & np.uint32(0)
    high, low = high | nothing, low | nothing
    first, second = threefry2x32_p.bind(words[0], words[1], high, low)
    return first, second


def bits(key: Any, shape: Sequence[int] = ()) -> Array:
    """Random uint32 of this shape.

    Raises:
        ValueError: no key, or 2**32 numbers or more.
    """
    first, second = _words(key, shape)
    return first ^ second


def uniform(key: Any, shape: Sequence[int] = (), dtype: Any = jnp.float32) -> Array:
    """Uniform numbers in [0, 1): multiples of 2**-23 in float32, of 2**-52 in float64.

    Raises:
        ValueError: another dtype, float64 outside of 64-bit mode, no key, or 2**32 numbers or more.
    """
    _check_dtype(dtype)
    first, second = _words(key, shape)
    if np.dtype(dtype) == np.float32:
        return ((first ^ second) >> np.uint32(9)).astype(dtype) * np.float32(2.0**-23)
    upper = first.astype(jnp.uint64) << np.uint64(20)
    lower = second.astype(jnp.uint64) >> np.uint64(12)
    return (upper | lower).astype(dtype) * np.float64(2.0**-52)


def bernoulli(key: Any, p: float = 0.5, shape: Sequence[int] = ()) -> Array:
    """True with probability p: where a uniform float32 number lies below p, rounded to float32.

    Raises:
        ValueError: p not in [0, 1], no key, or 2**32 numbers or more.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in 0..1, got {p}")
    return uniform(key, shape) < np.float32(p)


def gumbel(key: Any, shape: Sequence[int] = (), dtype: Any = jnp.float32) -> Array:
    """Numbers of the standard Gumbel distribution, -log(-log(u)) with u uniform in (0, 1).

    The logarithms of the twins may differ in the last bits.

    Raises:
        ValueError: as `uniform`.
    """
    numbers = uniform(key, shape, dtype)
    smallest = np.finfo(np.dtype(dtype)).tiny
    return -jnp.log(-jnp.log(jnp.maximum(numbers, smallest)))


def categorical(key: Any, logits: Array, axis: int = -1) -> Array:
    """Indices drawn with probabilities softmax(logits): the largest of logits + gumbel noise.

    Args:
        key: uint32 (2,), or a typed key.
        logits: float32 or float64, not normalised; -inf is never drawn.
        axis: of the alternatives.

    Returns:
        int32 (int64 in 64-bit mode), the shape of `logits` without that axis.

    Raises:
        ValueError: another dtype, no key, or 2**32 logits or more.
    """
    return (gumbel(key, logits.shape, logits.dtype) + logits).argmax(axis=axis)


def dropout(key: Any, x: Array, rate: float) -> Array:
    """x with each element 0 with probability `rate`, and otherwise times 1 / (1 - rate).

    The product is computed in float32 (float64 where x is) and cast: in bfloat16, 1 / (1 - rate)
    itself would be rounded, and the mean with it.

    Source: Srivastava et al., JMLR 15 (2014), scaled when training and not when decoding.

    Args:
        key: uint32 (2,), or a typed key.
        x: floating point, any shape.
        rate: in [0, 1).

    Raises:
        ValueError: no key, or 2**32 numbers or more.
    """
    dropped = bernoulli(key, rate, x.shape)
    wide = x.astype(np.promote_types(x.dtype, np.float32)) * (1 / (1 - rate))
    return jnp.where(dropped, jnp.zeros((), x.dtype), wide.astype(x.dtype))


def _words(key: Any, shape: Sequence[int]) -> tuple[Array, Array]:
    """The hashes of 0, 1, 2, ... in this shape, two uint32 words each."""
    shape = tuple(shape)
    if math.prod(shape) >= 1 << 32:
        raise ValueError(f"one key gives fewer than 2**32 numbers, got shape {shape}")
    low = jnp.zeros(shape, jnp.uint32)
    # Axis by axis, not reshaped: so each device of a sharded array counts its own part.
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) & 0xFFFFFFFF  # more only where there is nothing
        low = low + lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
    return threefry2x32(key, jnp.zeros_like(low), low)


def _check_dtype(dtype: Any) -> None:
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise ValueError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
    if np.dtype(dtype) == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError("float64 needs JAX's 64-bit mode: jax.enable_x64")
