"""Attention in float64 numpy, in the usual way or with one thing changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.tracing.suspects.evidence import ROUNDED

Array = NDArray[Any]
_HIDDEN = -1e9  # what is usually added to a score that is not to count


@dataclasses.dataclass(frozen=True)
class Setting:
    """What attention is computed from, and what is made of it.

    Attributes:
        query: (B, S, N*H).
        key: and value: (B, S, K*H).
        tables: cos and sin, (B or 1, S, H/2).
        mask: True where a query may look, (B or 1, S, S); None: the past.
        biases: of query, key and value, where these are known to have been added.
        kernel: (N*H, D), with which the heads' values are multiplied; None: they are not.
        rest: what is added to that, as a bias and a residual.
    """

    query: Array
    key: Array
    value: Array
    heads: int
    tables: tuple[Array, Array] | None
    mask: Array | None
    biases: tuple[Array, Array, Array] | None = None
    kernel: Array | None = None
    rest: Array | float = 0.0

    @property
    def head_dim(self) -> int:
        """H."""
        return int(self.query.shape[-1] // self.heads)


def attend(setting: Setting, change: Mapping[str, Any]) -> Array:
    """Attention with grouped heads, (B, S, N*H), and what is made of it, with one thing changed."""
    if "biases" in change:
        if setting.biases is None:
            raise ValueError("no biases")
        three = (setting.query, setting.key, setting.value)
        left = [
            array - bias * (role in change["biases"])
            for array, bias, role in zip(three, setting.biases, "qkv", strict=True)
        ]
        setting = dataclasses.replace(setting, query=left[0], key=left[1], value=left[2])
    heads = _heads(setting, change)
    return heads if setting.kernel is None else heads @ setting.kernel + setting.rest


def _heads(setting: Setting, change: Mapping[str, Any]) -> Array:
    head_dim, heads = setting.head_dim, setting.heads
    if setting.key.shape[-1] % head_dim:
        raise ValueError("keys are no whole number of heads")
    kv_heads = setting.key.shape[-1] // head_dim
    split = change.get("split", "")
    query = _split(setting.query, heads, split)
    key, value = (_split(a, kv_heads, split) for a in (setting.key, setting.value))
    if change.get("swap") == "kv":
        key, value = value, key
    if change.get("swap") == "qk":
        if heads != kv_heads:
            raise ValueError("as many keys as queries are needed")
        query, key = key, query
    norm = change.get("norm", "")
    if norm in ("before", "query"):
        query = _normalised(query)
    if norm in ("before", "key"):
        key = _normalised(key)
    if norm == "value":
        value = _normalised(value)
    query, key, value = _rotated(setting, change, query, key, value)
    if norm == "after":
        query, key = _normalised(query), _normalised(key)
    if norm in ("length", "cosine"):
        query, key = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (query, key))
    if change.get("swap") == "rotated":
        key, value = value, key
    groups = [
        _groups(change.get("grouping", "") or change.get(side, ""), heads, kv_heads)
        for side in ("keys", "values")
    ]
    scores = query @ key[:, groups[0]].swapaxes(2, 3)  # (B, N, S, S)
    width = setting.query.shape[-1]
    scales = {"none": 1.0, "1/H": 1 / head_dim, "1/sqrt(D)": width**-0.5}
    scores = scores * scales.get(
        change.get("scale", ""), 1.0 if norm == "cosine" else head_dim**-0.5
    )
    scores = _rounded(scores * change.get("factor", 1.0), change.get("scores", ""))
    if "cap" in change:
        scores = change["cap"] * np.tanh(scores / change["cap"])
    distance = np.arange(scores.shape[2])[:, None] - np.arange(scores.shape[3])
    if change.get("bias") == "alibi":
        slopes = 2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)
        scores = scores - slopes[:, None, None] * distance
    if "length" in change:
        places = np.arange(1, scores.shape[2] + 1)
        scores = scores * np.maximum(np.log(places) / np.log(change["length"]), 1)[:, None]
    mask = _mask(setting, change)[:, None] & (distance < change.get("window", distance.size))
    if "chunk" in change:
        chunk = np.arange(scores.shape[2]) // change["chunk"]
        mask = mask & (chunk[:, None] == chunk)
    if "cap_masked" in change:
        cap = change["cap_masked"]
        scores = np.where(mask, cap * np.tanh(scores / cap), -cap)
        mask = np.ones_like(mask)
    if "fill" in change or "add" in change:
        low = scores - change["add"] if "add" in change else -change["fill"]
        scores, mask = np.where(mask, scores, low), np.ones_like(mask)
    precision = change.get("precision", "")
    way = change.get("axis", "")
    # Where all that a softmax sees is hidden, a finite number hides none of it.
    finite = change.get("mask") == "queries" or (way == "queries" and not mask.any(-2).all())
    weights = _softmax(_rounded(scores, precision), mask, way, precision, finite)
    weights = _rounded(weights, change.get("probabilities", ""))
    weights = weights.swapaxes(2, 3) if change.get("weights") == "transposed" else weights
    mixed = weights @ value[:, groups[1]]  # (B, N, S, H)
    if change.get("merge") == "plain":
        return mixed.reshape(setting.query.shape)
    mixed = mixed.swapaxes(1, 2)
    if split == "inner" or change.get("merge") == "inner":
        mixed = mixed.swapaxes(2, 3)
    return mixed.reshape(*mixed.shape[:2], -1)


def _softmax(scores: Array, mask: Array, way: str, precision: str, finite: bool) -> Array:
    if way == "none":
        return np.where(mask, scores, 0.0)
    if way == "sigmoid":
        return np.where(mask, 1 / (1 + np.exp(-scores)), 0.0)
    if finite:
        scores, mask = scores + np.where(mask, 0.0, _HIDDEN), np.ones_like(mask)
    if way != "after":
        scores = np.where(mask, scores, -np.inf)
    axis = {"queries": -2, "heads": 1}.get(way, -1)
    largest = scores.max(axis=axis, keepdims=True)
    weights = _rounded(np.exp(scores - largest), precision)
    total = weights.sum(axis, keepdims=True) + (np.exp(-largest) if way == "one more" else 0.0)
    weights = _rounded(weights / total, precision)
    return np.where(mask, weights, 0.0)


def _groups(way: str, heads: int, kv_heads: int) -> Array:
    """Which key head each query head looks at."""
    group = np.arange(heads)
    if way == "modulo":
        return group % kv_heads
    if way == "first":
        return group * 0
    group = group // (heads // kv_heads)
    return group[::-1] if way == "reversed" else group


def _normalised(x: Array) -> Array:
    """RMSNorm without a weight, with the eps that is usual there."""
    normal: Array = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6)
    return normal


def _split(array: Array, heads: int, way: str) -> Array:
    """(B, S, N*H) to (B, N, S, H)."""
    batch, length, width = array.shape
    if way == "plain":
        return array.reshape(batch, heads, length, width // heads)
    if way == "inner":
        return array.reshape(batch, length, width // heads, heads).transpose(0, 3, 1, 2)
    return array.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def _rotated(
    setting: Setting, change: Mapping[str, Any], query: Array, key: Array, value: Array
) -> tuple[Array, Array, Array]:
    way = change.get("rope", "half")
    if setting.tables is None or way == "none":
        if setting.tables is None and ("rope" in change or "offset" in change):
            raise ValueError("no rotary tables")
        return query, key, value
    cos, sin = (table[:, None] for table in setting.tables)
    if way == "backwards":
        sin = -sin
    if way == "swapped":
        cos, sin = sin, cos
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


def _rotate_part(x: Array, cos: Array, sin: Array, kept: int) -> Array:
    turned = _rotate(x[..., : 2 * kept], cos[..., :kept], sin[..., :kept], "half")
    return np.concatenate((turned, x[..., 2 * kept :]), -1)


def _rotate_merged(x: Array, cos: Array, sin: Array) -> Array:
    """Heads after one another as if they were one, turned by tables that are repeated."""
    batch, heads, length, size = x.shape
    merged = x.swapaxes(1, 2).reshape(batch, 1, length, heads * size)
    turned = _rotate(merged, np.tile(cos, heads), np.tile(sin, heads), "half")
    return turned.reshape(batch, length, heads, size).swapaxes(1, 2)


def _mask(setting: Setting, change: Mapping[str, Any]) -> Array:
    """True where a query may look, (B or 1, S, S)."""
    length = setting.query.shape[1]
    causal = np.tril(np.ones((1, length, length), bool))
    way = change.get("mask", "")
    if way == "none":
        return np.ones_like(causal)
    if way == "causal":
        return causal
    if way == "own":
        return np.eye(length, dtype=bool)[None]
    if way == "ahead":
        return np.tril(np.ones((1, length, length), bool), 1)
    if way == "behind":
        return np.tril(np.ones((1, length, length), bool), -1)
    given = causal if setting.mask is None else setting.mask
    if way == "queries":
        return given.swapaxes(1, 2)
    return given & causal if way == "past" else given


def _rounded(array: Array, precision: str) -> Array:
    return array.astype(ROUNDED[precision]).astype(np.float64) if precision else array
