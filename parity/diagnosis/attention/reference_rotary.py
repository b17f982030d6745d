"""Rotary embedding of queries and keys in float64 numpy, in the usual way or otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tables = tuple[Array, Array]


def rotated(
    query: Array, key: Array, value: Array, tables: Tables | None, change: Mapping[str, Any]
) -> tuple[Array, Array, Array]:
    """Query (B, N, S, H), key and value (B, K, S, H), turned as `change` says.

    Args:
        query: and key, value: split into heads.
        tables: cos and sin, (B or 1, S, H/2); None: nothing is rotated.
        change: `rope` names a way, `offset` moves the positions of queries, and `theta` takes
            other tables, of positions from 0, divided by `stretch`.

    Raises:
        ValueError: sizes, or missing tables, that do not allow this way.
    """
    way = change.get("rope", "half")
    if "theta" in change:
        stretch = float(change.get("stretch", 1))
        tables = rope_tables(query.shape[2], query.shape[3], change["theta"], stretch)
    if tables is None or way == "none":
        if tables is None and ("rope" in change or "offset" in change):
            raise ValueError("no rotary tables")
        return query, key, value
    cos, sin = (table[:, None] for table in tables)
    if way == "backwards":
        sin = -sin
    if way == "swapped":
        cos, sin = sin, cos
    if way == "plus":
        return _rotate_plainly(query, cos, sin), _rotate_plainly(key, cos, sin), value
    if way in ("part", "quarter"):
        kept = cos.shape[-1] // (2 if way == "part" else 4)
        if not kept:
            raise ValueError("too few channels")
        return _rotate_part(query, cos, sin, kept), _rotate_part(key, cos, sin, kept), value
    if way == "twice":
        query, key = _rotate(query, cos, sin, "half"), _rotate(key, cos, sin, "half")
    if way == "merged":
        return _rotate_merged(query, cos, sin), _rotate_merged(key, cos, sin), value
    pairs = "interleaved" if way == "interleaved" else "half"
    step = int(change.get("offset", 0))
    if way != "key":
        query = _rotate(query, *_moved(cos, sin, step), pairs)
    if way != "query":
        key = _rotate(key, cos, sin, pairs)
    if way == "value":
        value = _rotate(value, cos, sin, pairs)
    return query, key, value


def rope_tables(length: int, head_dim: int, theta: float, stretch: float = 1.0) -> Tables:
    """Cos and sin (1, S, H/2) of positions from 0, divided by `stretch`, in the usual way."""
    half = head_dim // 2
    angles = np.arange(length)[:, None] / stretch * theta ** (-np.arange(half) / half)
    return np.cos(angles)[None], np.sin(angles)[None]


def _moved(cos: Array, sin: Array, step: int) -> tuple[Array, Array]:
    """The tables of positions that are one higher or lower, going on at the end as they did."""
    turn = cos + 1j * sin
    if step > 0:
        turn = np.concatenate((turn[..., 1:, :], turn[..., -1:, :] ** 2 / turn[..., -2:-1, :]), -2)
    elif step < 0:
        turn = np.concatenate((turn[..., :1, :] ** 2 / turn[..., 1:2, :], turn[..., :-1, :]), -2)
    return turn.real, turn.imag


def _rotate(x: Array, cos: Array, sin: Array, pairs: str) -> Array:
    if pairs == "interleaved":
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack((a * cos - b * sin, b * cos + a * sin), -1).reshape(x.shape)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def _rotate_plainly(x: Array, cos: Array, sin: Array) -> Array:
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate((a * cos + b * sin, b * cos + a * sin), -1)


def _rotate_part(x: Array, cos: Array, sin: Array, kept: int) -> Array:
    turned = _rotate(x[..., : 2 * kept], cos[..., :kept], sin[..., :kept], "half")
    return np.concatenate((turned, x[..., 2 * kept :]), -1)


def _rotate_merged(x: Array, cos: Array, sin: Array) -> Array:
    """Heads after one another as if they were one, turned by tables that are repeated."""
    batch, heads, length, size = x.shape
    merged = x.swapaxes(1, 2).reshape(batch, 1, length, heads * size)
    turned = _rotate(merged, np.tile(cos, heads), np.tile(sin, heads), "half")
    return turned.reshape(batch, length, heads, size).swapaxes(1, 2)
