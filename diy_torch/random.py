"""JAX's random numbers in PyTorch: threefry2x32, a hash of a key and a counter.

Number i of an array is the hash of i under the key, whatever the device, the shape before it or the
order of the draws. So both twins drop the same activations and sample the same tokens.

A key is uint32 (2,), the same two words as JAX's. A key is used once: for more numbers, `split` it
or `fold_in` what they are for.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; the counters are
those of `jax.random` with `jax_threefry_partitionable`, its default.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_CHUNK = 1 << 20  # counters hashed at a time: they stay in the cache, and memory stays low


def key(seed: Any, device: torch.device | str | None = None) -> Tensor:
    """The key of a seed, its upper and lower 32 bits.

    `jax.random.key` makes the same in 64-bit mode; in its 32-bit mode it drops the upper bits.

    Args:
        seed: 0 to 2**64 - 1.
        device: where the key lives, and what is drawn from it; None is the CPU.

    Raises:
        ValueError: a seed out of range.
    """
    seed = operator.index(seed)
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must lie in 0..2**64 - 1, got {seed}")
    return torch.tensor([seed >> 32, seed & 0xFFFFFFFF], dtype=torch.uint32, device=device)


def raw_key(key: Tensor) -> Tensor:
    """The two words of a key, which is what it is here.

    Raises:
        ValueError: not uint32 of shape (2,).
    """
    if key.dtype != torch.uint32 or tuple(key.shape) != (2,):
        raise ValueError(
            f"a key is uint32 of shape (2,), as key() makes it; got {key.dtype} {tuple(key.shape)}"
        )
    return key


def fold_in(key: Tensor, data: Any) -> Tensor:
    """A new key for each number: which layer, which step.

    Args:
        key: uint32 (2,).
        data: an integer in 0..2**32 - 1, or a tensor of such integers of any shape.

    Returns:
        uint32 (2,), or (*data.shape, 2).

    Raises:
        ValueError: no key, or an integer out of range (in tensors it wraps).
    """
    raw_key(key)
    if not isinstance(data, Tensor):
        data = operator.index(data)
        if not 0 <= data < 1 << 32:
            raise ValueError(f"data must lie in 0..2**32 - 1, got {data}")
        data = torch.full((), data, dtype=torch.int64, device=key.device)
    low = data.to(key.device, torch.int64).to(torch.int32).view(torch.uint32)
    return torch.stack(threefry2x32(key, torch.zeros_like(low), low), dim=-1)


def split(key: Tensor, n: int = 2) -> Tensor:
    """n new keys, uint32 (n, 2): those of `fold_in` with 0 to n - 1."""
    return fold_in(key, torch.arange(n, device=key.device))


def threefry2x32(key: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """The hash itself, 20 rounds, of the counters high * 2**32 + low.

    torch computes little with uint32; int32 has the same bits, and its sums wrap around alike.

    Args:
        key: uint32 (2,).
        high: uint32 of any shape.
        low: uint32 of the same shape.

    Returns:
        The two words of each result, uint32.
    """
    key_0, key_1 = raw_key(key).view(torch.int32)
    words = (key_0, key_1, key_0 ^ key_1 ^ _PARITY)
    a, b = high.view(torch.int32) + key_0, low.view(torch.int32) + key_1
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            a += b
            left = b << rotation
            b >>= 32 - rotation  # copies the sign, which a logical shift would not
            b &= (1 << rotation) - 1
            b |= left
            b ^= a
        a += words[(group + 1) % 3]
        b += words[(group + 2) % 3] + (group + 1)
    return a.view(torch.uint32), b.view(torch.uint32)


def bits(key: Tensor, shape: Sequence[int] = ()) -> Tensor:
    """Random uint32 of this shape, on the key's device.

    Raises:
        ValueError: no key, or 2**32 numbers or more.
    """
    first, second = _words(key, shape)
    return first.bitwise_xor_(second).view(torch.uint32)


def uniform(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1): multiples of 2**-23 in float32, of 2**-52 in float64.

    Raises:
        ValueError: another dtype, no key, or 2**32 numbers or more.
    """
    _check_dtype(dtype)
    first, second = _words(key, shape)
    if dtype == torch.float32:
        mantissa = first.bitwise_xor_(second).bitwise_right_shift_(9).bitwise_and_(0x7FFFFF)
        return mantissa.to(dtype).mul_(2.0**-23)
    upper = (first.to(torch.int64) & 0xFFFFFFFF) << 20
    lower = (second.to(torch.int64) & 0xFFFFFFFF) >> 12
    return (upper | lower).to(dtype).mul_(2.0**-52)


def bernoulli(key: Tensor, p: float = 0.5, shape: Sequence[int] = ()) -> Tensor:
    """True with probability p: where a uniform float32 number lies below p, rounded to float32.

    Raises:
        ValueError: p not in [0, 1], no key, or 2**32 numbers or more.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in 0..1, got {p}")
    return uniform(key, shape) < torch.full((), p, dtype=torch.float32, device=key.device)


def gumbel(key: Tensor, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of the standard Gumbel distribution, -log(-log(u)) with u uniform in (0, 1).

    The logarithms of the twins may differ in the last bits.

    Raises:
        ValueError: as `uniform`.
    """
    smallest = torch.finfo(dtype).tiny if dtype.is_floating_point else 0.0
    return uniform(key, shape, dtype).clamp_(min=smallest).log_().neg_().log_().neg_()


def categorical(key: Tensor, logits: Tensor, axis: int = -1) -> Tensor:
    """Indices drawn with probabilities softmax(logits): the largest of logits + gumbel noise.

    Args:
        key: uint32 (2,).
        logits: float32 or float64, not normalised; -inf is never drawn.
        axis: of the alternatives.

    Returns:
        int64, the shape of `logits` without that axis.

    Raises:
        ValueError: another dtype, no key, or 2**32 logits or more.
    """
    return (gumbel(key, logits.shape, logits.dtype) + logits).argmax(dim=axis)


def dropout(key: Tensor, x: Tensor, rate: float) -> Tensor:
    """x with each element 0 with probability `rate`, and otherwise times 1 / (1 - rate).

    The product is computed in float32 (float64 where x is) and cast: in bfloat16, 1 / (1 - rate)
    itself would be rounded, and the mean with it.

    Source: Srivastava et al., JMLR 15 (2014), scaled when training and not when decoding.

    Args:
        key: uint32 (2,).
        x: floating point, any shape.
        rate: in [0, 1).

    Raises:
        ValueError: no key, or 2**32 numbers or more.
    """
    dropped = bernoulli(key, rate, x.shape)
    wide = x.to(torch.promote_types(x.dtype, torch.float32)) * (1 / (1 - rate))
    return wide.to(x.dtype).masked_fill(dropped, 0.0)


def _words(key: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The hashes of 0, 1, 2, ... in this shape, two int32 words each."""
    raw_key(key)
    size = math.prod(shape)
    if size >= 1 << 32:
        raise ValueError(f"one key gives fewer than 2**32 numbers, got shape {tuple(shape)}")
    words = torch.empty((2, size), dtype=torch.int32, device=key.device)
    # What is compiled is one loop over the elements anyway.
    chunk = size if torch.compiler.is_compiling() else _CHUNK
    for start in range(0, size, max(chunk, 1)):
        low = torch.arange(start, min(start + chunk, size), device=key.device)
        low = low.to(torch.int32).view(torch.uint32)
        for row, word in zip(words, threefry2x32(key, torch.zeros_like(low), low), strict=True):
            row[start : start + chunk] = word.view(torch.int32)
    return words[0].view(tuple(shape)), words[1].view(tuple(shape))


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
