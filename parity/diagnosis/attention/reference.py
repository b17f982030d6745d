"""Attention in float64 numpy, in the usual way or with one thing changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.attention.reference_rotary import rotated
from parity.diagnosis.evidence import ROUNDED

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
        bias: what is added to the scores, (B or 1, N, S, S), as for relative positions.
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
    bias: Array | None = None
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
    query, key, value = _inputs(setting, change)
    heads, kv_heads = setting.heads, setting.key.shape[-1] // setting.head_dim
    groups = [
        _groups(change.get("grouping", "") or change.get(side, ""), heads, kv_heads)
        for side in ("keys", "values")
    ]
    scores = query @ key[:, groups[0]].swapaxes(2, 3)  # (B, N, S, S)
    scores, mask = _hidden(_scored(scores, setting, change), _mask(setting, change), change)
    precision, way = change.get("precision", ""), change.get("axis", "")
    # Where all that a softmax sees is hidden, a finite number hides none of it.
    finite = change.get("mask", "").startswith("queries")
    finite |= way == "queries" and not mask.any(-2).all()
    if change.get("mask") == "queries filled":
        scores = np.where(mask, scores, _HIDDEN)
    weights = _softmax(_rounded(scores, precision), mask, way, precision, finite)
    weights = _rounded(weights, change.get("probabilities", ""))
    weights = weights.swapaxes(2, 3) if change.get("weights") == "transposed" else weights
    mixed = weights @ value[:, groups[1]]  # (B, N, S, H)
    if change.get("plus") == "value":
        mixed = mixed + value[:, groups[1]]
    return _merged(mixed, setting, change)


def _inputs(setting: Setting, change: Mapping[str, Any]) -> tuple[Array, Array, Array]:
    """Query (B, N, S, H), key and value (B, K, S, H), as they are scored and mixed."""
    heads, kv_heads = setting.heads, setting.key.shape[-1] // setting.head_dim
    if setting.key.shape[-1] % setting.head_dim:
        raise ValueError("keys are no whole number of heads")
    flat = {name: getattr(setting, name) for name in ("query", "key", "value")}
    if "shift" in change:
        flat[change["shift"]] = _later(flat[change["shift"]])
    if "clip_inputs" in change:
        limit = change["clip_inputs"]
        flat = {name: np.clip(array, -limit, limit) for name, array in flat.items()}
    split, norm, swap = (change.get(name, "") for name in ("split", "norm", "swap"))
    query = _split(flat["query"], heads, split)
    key, value = (_split(flat[name], kv_heads, split) for name in ("key", "value"))
    if swap == "kv":
        key, value = value, key
    if swap == "qk":
        if heads != kv_heads:
            raise ValueError("as many keys as queries are needed")
        query, key = key, query
    if norm in ("before", "query"):
        query = _normalised(query)
    if norm in ("before", "key"):
        key = _normalised(key)
    if norm == "value":
        value = _normalised(value)
    query, key, value = rotated(query, key, value, setting.tables, change)
    if norm == "after":
        query, key = _normalised(query), _normalised(key)
    if norm in ("length", "cosine"):
        query, key = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (query, key))
    return (query, value, key) if swap == "rotated" else (query, key, value)


def _scored(scores: Array, setting: Setting, change: Mapping[str, Any]) -> Array:
    """Scores (B, N, S, S) scaled, capped, and with what is added to them."""
    scales = {
        "none": 1.0,
        "1/H": 1 / setting.head_dim,
        "1/sqrt(D)": setting.query.shape[-1] ** -0.5,
    }
    usual = 1.0 if change.get("norm") == "cosine" else setting.head_dim**-0.5
    scores = scores * scales.get(change.get("scale", ""), usual)
    scores = _rounded(scores * change.get("factor", 1.0), change.get("scores", ""))
    if "clip_scores" in change:
        scores = np.clip(scores, -change["clip_scores"], change["clip_scores"])
    if setting.bias is not None and change.get("bias") != "none":
        turned = change.get("bias") == "turned"
        scores = scores + (setting.bias.swapaxes(-1, -2) if turned else setting.bias)
    if "cap" in change:
        scores = change["cap"] * np.tanh(scores / change["cap"])
    if change.get("bias") == "alibi":
        heads = scores.shape[1]
        slopes = 2.0 ** (-8.0 * np.arange(1, heads + 1) / heads)
        scores = scores - slopes[:, None, None] * _distance(scores)
    if "length" in change:
        places = np.arange(1, scores.shape[2] + 1)
        scores = scores * np.maximum(np.log(places) / np.log(change["length"]), 1)[:, None]
    return scores


def _hidden(scores: Array, mask: Array, change: Mapping[str, Any]) -> tuple[Array, Array]:
    """Scores, and the mask (B or 1, 1, S, S) of those that count, with a window or a soft mask."""
    places = np.arange(scores.shape[3])
    mask = mask[:, None] & (_distance(scores) < change.get("window", scores.size))
    if "prefix" in change:
        mask = mask | (places < change["prefix"])
    if "chunk" in change:
        chunk = places // change["chunk"]
        mask = mask & (chunk[:, None] == chunk)
    if "cap_masked" in change:
        cap = change["cap_masked"]
        return np.where(mask, cap * np.tanh(scores / cap), -cap), np.ones_like(mask)
    if "fill" in change or "add" in change:
        low = scores - change["add"] if "add" in change else -change["fill"]
        return np.where(mask, scores, low), np.ones_like(mask)
    return scores, mask


def _distance(scores: Array) -> Array:
    """How far back each key is from each query."""
    distance: Array = np.arange(scores.shape[2])[:, None] - np.arange(scores.shape[3])
    return distance


def _merged(mixed: Array, setting: Setting, change: Mapping[str, Any]) -> Array:
    """(B, N, S, H) to (B, S, N*H)."""
    way = change.get("merge", "")
    if way == "plain":
        return mixed.reshape(setting.query.shape)
    if way == "mean":
        kv_heads = setting.key.shape[-1] // setting.head_dim
        each = mixed.reshape(len(mixed), kv_heads, -1, *mixed.shape[2:])
        mixed = np.broadcast_to(each.mean(2, keepdims=True), each.shape).reshape(mixed.shape)
    mixed = mixed.swapaxes(1, 2)
    if change.get("split") == "inner" or way == "inner":
        mixed = mixed.swapaxes(2, 3)
    return mixed.reshape(*mixed.shape[:2], -1)


def _softmax(scores: Array, mask: Array, way: str, precision: str, finite: bool) -> Array:
    if way == "none":
        return np.where(mask, scores, 0.0)
    if way in ("relu", "relu2"):
        positive = np.where(mask, np.maximum(scores, 0.0), 0.0)
        return positive ** (2 if way == "relu2" else 1) / scores.shape[-1]
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
    if way in ("inner", "inner in"):
        return array.reshape(batch, length, width // heads, heads).transpose(0, 3, 1, 2)
    return array.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


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
    if way == "strict":
        behind = np.tril(np.ones((length, length), bool), -1)
        behind[0, 0] = True
        return given & behind
    if way == "no first":
        others = np.arange(length) > 0
        return given & (others | ~others[:, None])  # the first query has no other
    if way == "inverted":
        return ~given
    if way == "transposed":
        return given.swapaxes(1, 2)
    if way.startswith("queries"):
        return given.swapaxes(1, 2)
    return given & causal if way == "past" else given


def _later(array: Array) -> Array:
    """(B, S, D), each token with what the one before it has; the first has zeros."""
    return np.concatenate((np.zeros_like(array[:, :1]), array[:, :-1]), axis=1)


def _rounded(array: Array, precision: str) -> Array:
    return array.astype(ROUNDED[precision]).astype(np.float64) if precision else array
