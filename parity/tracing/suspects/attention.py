"""Hypotheses about attention: rotary pairs, scale, mask, grouping of heads, precision.

Attention is computed here, in float64, from what the culprit's own projections gave, in the usual
way and with one thing changed at a time; each side is known by the way that gives its values.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from parity.tracing.errors import relative_error
from parity.tracing.infer import words_of
from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import Evidence

Array = NDArray[Any]
_HEADS = ("heads", "num_heads", "num_attention_heads", "n_head", "n_heads", "nhead", "h")
# One thing done otherwise, and how it is said.
CHANGES: dict[str, tuple[str, str, str]] = {
    "rope-interleaved": ("rope", "interleaved", "rotates neighbouring channels"),
    "rope-left-out": ("rope", "none", "does not rotate"),
    "rope-backwards": ("rope", "backwards", "rotates the other way"),
    "rope-query-only": ("rope", "query", "rotates queries only"),
    "rope-key-only": ("rope", "key", "rotates keys only"),
    "rope-value-too": ("rope", "value", "rotates values too"),
    "position-ahead": ("offset", "1", "has positions one too high for queries"),
    "position-behind": ("offset", "-1", "has positions one too low for queries"),
    "scale-missing": ("scale", "none", "does not scale the scores"),
    "scale-head-dim": ("scale", "1/H", "scales the scores by 1/H"),
    "scale-hidden": ("scale", "1/sqrt(D)", "scales the scores by 1/sqrt of the whole width"),
    "scale-twice": ("scale", "twice", "scales the scores twice"),
    "mask-left-out": ("mask", "none", "has no mask"),
    "mask-one-ahead": ("mask", "ahead", "lets each query see one key of the future"),
    "mask-one-behind": ("mask", "behind", "hides each query's own key"),
    "heads-regrouped": ("grouping", "modulo", "gives query head n the key head n % K"),
    "heads-split-otherwise": ("split", "inner", "splits and merges heads as (H, N)"),
    "heads-merged-otherwise": ("merge", "inner", "merges heads as (H, N)"),
    "softmax-float32": ("precision", "float32", "computes the softmax in float32"),
    "softmax-bfloat16": ("precision", "bfloat16", "computes the softmax in bfloat16"),
    "key-value-swapped": ("swap", "kv", "takes keys for values"),
    "rotated-key-value-swapped": ("swap", "rotated", "takes rotated keys for values"),
    "query-key-swapped": ("swap", "qk", "takes keys for queries"),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What attention is computed from."""

    query: Array  # (B, S, N*H)
    key: Array  # (B, S, K*H)
    value: Array  # (B, S, K*H)
    heads: int
    tables: tuple[Array, Array] | None  # cos and sin, (B or 1, S, H/2)
    mask: Array | None  # (B, S, S)

    @property
    def head_dim(self) -> int:
        """H."""
        return int(self.query.shape[-1] // self.heads)


def attention_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What the Flax side does otherwise between its projections."""
    for setting in _settings(evidence):
        one, other = evidence.target.torch, evidence.target.flax
        plain = _error(setting, {}, one), _error(setting, {}, other)
        # One of the sides has to be the usual one, the other is that with one change.
        for usual, odd, side in ((plain[0], other, "Flax"), (plain[1], one, "PyTorch")):
            if usual > evidence.bound:
                continue
            for name, (key, choice, words) in CHANGES.items():
                after = _error(setting, {key: choice}, odd)
                if suspect := evidence.judge(name, f"attention {words} in {side}", after):
                    yield suspect
            return


def _error(setting: Setting, change: Mapping[str, str], side: Array) -> float:
    try:
        value = attend(setting, change)
    except ValueError:  # a change that these sizes do not allow
        return math.inf
    return relative_error(value, side) if value.shape == side.shape else math.inf


def _settings(evidence: Evidence) -> Iterator[Setting]:
    """Ways to see the parts as queries, keys and values of so many heads."""
    found: dict[str, Array] = {}
    for part in evidence.parts:
        if part.name == evidence.stage:
            break
        words = words_of(part.name)
        for role in ("query", "key", "value"):
            if role in words and part.outputs:
                found[role] = _flat(part.outputs[0].torch)
        if len(part.outputs) == 3:  # one call that gives all three
            roles = ("query", "key", "value")
            found = {r: _flat(v.torch) for r, v in zip(roles, part.outputs, strict=True)}
    if len(found) < 3 or any(array.ndim != 3 for array in found.values()):
        return
    mask = next((v.torch for v in evidence.inputs if v.torch.dtype == bool), None)
    for heads in _head_counts(evidence, found["query"].shape[-1], found["key"].shape[-1]):
        half = found["query"].shape[-1] // heads // 2
        tables = [v.torch for v in evidence.inputs if v.torch.shape[-1:] == (half,)]
        both = (tables[0], tables[1]) if len(tables) == 2 else None
        yield Setting(found["query"], found["key"], found["value"], heads, both, mask)


def _flat(array: Array) -> Array:
    """(B, S, N, H) as (B, S, N*H)."""
    return array.reshape(*array.shape[:2], -1) if array.ndim > 3 else array


def _head_counts(evidence: Evidence, width: int, key_width: int) -> list[int]:
    """What the module says, else every number of heads that is possible."""
    config = getattr(evidence.module, "config", None)
    for owner in (evidence.module, config):
        for name in _HEADS:
            count = getattr(owner, name, None)
            if isinstance(count, int) and count > 0 and width % count == 0:
                return [count]
    return [n for n in range(1, width) if width % n == 0 and key_width % (width // n) == 0]


def attend(setting: Setting, change: Mapping[str, str]) -> Array:
    """Causal attention with grouped heads, (B, S, N*H), with what is to be otherwise."""
    head_dim, heads = setting.head_dim, setting.heads
    if setting.key.shape[-1] % head_dim:
        raise ValueError("keys are no whole number of heads")
    kv_heads = setting.key.shape[-1] // head_dim
    inner = change.get("split") == "inner"
    query = _split(setting.query, heads, inner)
    key, value = (_split(a, kv_heads, inner) for a in (setting.key, setting.value))
    if change.get("swap") == "kv":
        key, value = value, key
    if change.get("swap") == "qk":
        if heads != kv_heads:
            raise ValueError("as many keys as queries are needed")
        query, key = key, query
    query, key, value = _rotated(setting, change, query, key, value)
    if change.get("swap") == "rotated":
        key, value = value, key
    group = np.arange(heads)
    group = group % kv_heads if change.get("grouping") == "modulo" else group // (heads // kv_heads)
    scores = query @ key[:, group].swapaxes(2, 3)  # (B, N, S, S)
    width = setting.query.shape[-1]
    scales = {"none": 1.0, "1/H": 1 / head_dim, "1/sqrt(D)": width**-0.5, "twice": 1 / head_dim}
    scores = scores * scales.get(change.get("scale", ""), head_dim**-0.5)
    scores = np.where(_mask(setting, change)[:, None], scores, -np.inf)
    precision = change.get("precision", "")
    scores = _rounded(scores, precision)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = _rounded(_rounded(weights, precision) / weights.sum(-1, keepdims=True), precision)
    mixed = (weights @ value[:, group]).swapaxes(1, 2)  # (B, S, N, H)
    if inner or change.get("merge") == "inner":
        mixed = mixed.swapaxes(2, 3)
    return mixed.reshape(*mixed.shape[:2], -1)


def _split(array: Array, heads: int, inner: bool) -> Array:
    """(B, S, N*H) to (B, N, S, H)."""
    batch, length, width = array.shape
    if inner:
        return array.reshape(batch, length, width // heads, heads).transpose(0, 3, 1, 2)
    return array.reshape(batch, length, heads, width // heads).swapaxes(1, 2)


def _rotated(
    setting: Setting, change: Mapping[str, str], query: Array, key: Array, value: Array
) -> tuple[Array, Array, Array]:
    way = change.get("rope", "half")
    if setting.tables is None or way == "none":
        if setting.tables is None and ("rope" in change or "offset" in change):
            raise ValueError("no rotary tables")
        return query, key, value
    cos, sin = (table[:, None] for table in setting.tables)
    if way == "backwards":
        sin = -sin
    pairs = "interleaved" if way == "interleaved" else "half"
    step = int(change.get("offset", 0))
    if way != "key":
        query = _rotate(query, _moved(cos, step), _moved(sin, step), pairs)
    if way != "query":
        key = _rotate(key, cos, sin, pairs)
    if way == "value":
        value = _rotate(value, cos, sin, pairs)
    return query, key, value


def _moved(table: Array, step: int) -> Array:
    """The table of positions that are one higher or lower; the last ones cannot be known."""
    return np.roll(table, -step, axis=-2)


def _rotate(x: Array, cos: Array, sin: Array, pairs: str) -> Array:
    if pairs == "interleaved":
        a, b = x[..., 0::2], x[..., 1::2]
        return np.stack((a * cos - b * sin, b * cos + a * sin), -1).reshape(x.shape)
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)


def _mask(setting: Setting, change: Mapping[str, str]) -> Array:
    """True where a query may look, (B or 1, S, S)."""
    length = setting.query.shape[1]
    causal = np.tril(np.ones((1, length, length), bool))
    way = change.get("mask", "")
    if way == "none":
        return np.ones_like(causal)
    if way == "ahead":
        return np.tril(np.ones((1, length, length), bool), 1)
    if way == "behind":
        return np.tril(np.ones((1, length, length), bool), -1)
    given = setting.mask
    return given if given is not None and given.shape[-2:] == (length, length) else causal


def _rounded(array: Array, precision: str) -> Array:
    types: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
    return array.astype(types[precision]).astype(np.float64) if precision else array
