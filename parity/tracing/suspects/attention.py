"""Hypotheses about attention: rotary pairs, scale, mask, grouping of heads, precision.

Attention is computed here, in float64, from what the culprit's own projections gave, in the usual
way and with one thing changed at a time; each side is known by the way that gives its values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_torch.checkpoint import to_numpy
from parity.tracing.errors import relative_error
from parity.tracing.names import words_of
from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import Evidence, Part
from parity.tracing.suspects.reference_attention import Setting, attend

Array = NDArray[Any]
_FARTHEST = 20.0  # of the logarithm of a number that is sought
_FITTED = 1e-9  # what is left where a number was fitted
_ROLES = ("query", "key", "value")
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
    "scale-head-dim": ("scale", "1/H", "scales the scores by 1/H, or by 1/sqrt(H) twice"),
    "scale-hidden": ("scale", "1/sqrt(D)", "scales the scores by 1/sqrt of the whole width"),
    "mask-left-out": ("mask", "none", "has no mask"),
    "mask-one-ahead": ("mask", "ahead", "lets each query see one key of the future"),
    "mask-one-behind": ("mask", "behind", "hides each query's own key"),
    "heads-regrouped": ("grouping", "modulo", "gives query head n the key head n % K"),
    "heads-split-otherwise": ("split", "inner", "splits and merges heads as (H, N)"),
    "heads-merged-otherwise": ("merge", "inner", "merges heads as (H, N)"),
    "heads-not-moved-back": ("merge", "plain", "merges heads without moving them behind positions"),
    "heads-not-moved": ("split", "plain", "splits heads without moving them before positions"),
    "mask-diagonal": ("mask", "own", "lets each query see its own key only"),
    "mask-causal-only": ("mask", "causal", "masks the future only, not padding or documents"),
    "mask-causal-too": ("mask", "past", "masks the future too"),
    "mask-queries": ("mask", "queries", "masks the queries that are padding, not the keys"),
    "weights-transposed": ("weights", "transposed", "mixes values by transposed probabilities"),
    "bias-left-out": ("biases", "qkv", "leaves out the biases of queries, keys and values"),
    "query-bias-left-out": ("biases", "q", "leaves out the bias of queries"),
    "key-bias-left-out": ("biases", "k", "leaves out the bias of keys"),
    "value-bias-left-out": ("biases", "v", "leaves out the bias of values"),
    "heads-first": ("grouping", "first", "gives all query heads the first key head"),
    "heads-reversed": ("grouping", "reversed", "pairs query heads with key heads in reverse"),
    "softmax-float32": ("precision", "float32", "computes the softmax in float32"),
    "softmax-float16": ("precision", "float16", "computes the softmax in float16"),
    "softmax-bfloat16": ("precision", "bfloat16", "computes the softmax in bfloat16"),
    "scores-float32": ("scores", "float32", "rounds the scores to float32"),
    "scores-float16": ("scores", "float16", "rounds the scores to float16"),
    "scores-bfloat16": ("scores", "bfloat16", "rounds the scores to bfloat16"),
    "probabilities-float32": ("probabilities", "float32", "rounds the probabilities to float32"),
    "probabilities-float16": ("probabilities", "float16", "rounds the probabilities to float16"),
    "probabilities-bfloat16": ("probabilities", "bfloat16", "rounds the probabilities to bfloat16"),
    "softmax-queries": ("axis", "queries", "takes the softmax over queries, not keys"),
    "softmax-plus-one": ("axis", "one more", "has 1 more in the softmax's sum (a sink)"),
    "softmax-left-out": ("axis", "none", "has no softmax"),
    "softmax-masked-after": ("axis", "after", "masks after the softmax, not before"),
    "query-key-norm": ("norm", "before", "normalises queries and keys in each head"),
    "query-key-norm-rotated": ("norm", "after", "normalises rotated queries and keys"),
    "query-norm": ("norm", "query", "normalises queries in each head"),
    "key-norm": ("norm", "key", "normalises keys in each head"),
    "value-norm": ("norm", "value", "normalises values in each head"),
    "query-key-norm-l2": ("norm", "length", "normalises queries and keys to length 1"),
    "query-key-cosine": ("norm", "cosine", "scores by the cosine of query and key, unscaled"),
    "softmax-heads": ("axis", "heads", "takes the softmax over heads, not keys"),
    "softmax-sigmoid": ("axis", "sigmoid", "has a sigmoid in place of the softmax"),
    "values-regrouped": ("values", "modulo", "gives query head n the values of head n % K"),
    "keys-regrouped": ("keys", "modulo", "gives query head n the keys of head n % K"),
    "rope-quarter": ("rope", "quarter", "rotates a quarter of the channels only"),
    "rope-part": ("rope", "part", "rotates half of the channels only"),
    "rope-merged": ("rope", "merged", "rotates before the heads are split"),
    "rope-twice": ("rope", "twice", "rotates twice"),
    "rope-swapped": ("rope", "swapped", "has cos and sin swapped"),
    "alibi": ("bias", "alibi", "adds ALiBi's distances to the scores"),
    "key-value-swapped": ("swap", "kv", "takes keys for values"),
    "rotated-key-value-swapped": ("swap", "rotated", "takes rotated keys for values"),
    "query-key-swapped": ("swap", "qk", "takes keys for queries"),
}


def attention_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What the Flax side does otherwise between its projections."""
    for setting in _settings(evidence):
        one, other = evidence.target.torch, evidence.target.flax
        plain = _error(setting, {}, one), _error(setting, {}, other)
        # One of the sides has to be the usual one, the other is that with one change.
        for usual, odd, side in ((plain[0], other, "Flax"), (plain[1], one, "PyTorch")):
            if usual > evidence.bound:
                continue
            found = False
            for name, (key, choice, words) in CHANGES.items():
                after = _error(setting, {key: choice}, odd)
                if suspect := evidence.judge(name, f"attention {words} in {side}", after):
                    found = True
                    yield suspect
            if not found:
                yield from _fitted(evidence, setting, odd, side)
            return


def _fitted(evidence: Evidence, setting: Setting, odd: Array, side: str) -> Iterator[Suspect]:
    """Changes by a number that has to be found: a window's size, a factor, a cap."""
    length = setting.query.shape[1]
    for size in range(1, length):
        after = _error(setting, {"window": size}, odd)
        words = f"attention sees the last {size} keys only in {side}"
        if suspect := evidence.judge("mask-window", words, after):
            yield suspect
            return
    for size in range(2, length):
        after = _error(setting, {"chunk": size}, odd)
        words = f"attention sees keys of its own chunk of {size} only in {side}"
        if suspect := evidence.judge("mask-chunks", words, after):
            yield suspect
            return
    for key, name, words in (
        ("factor", "scale-other", "multiplies its scores by another {:.6g}"),
        ("cap", "softcap", "caps its scores at {:.6g} (c * tanh(x / c))"),
        ("cap_masked", "softcap", "caps scores at {:.6g} after masking, so that nothing is hidden"),
        (
            "length",
            "scale-length",
            "multiplies scores by log(position) / log({:.6g}) where above 1",
        ),
        ("fill", "mask-soft", "gives hidden keys a score of -{:.6g}, not -inf"),
        ("add", "mask-soft", "takes {:.6g} from the scores of hidden keys, not infinity"),
    ):
        number, after = _fit(setting, key, odd)
        if after <= max(_FITTED, evidence.bound) < evidence.target.error:
            sentence = f"attention {words.format(number)} in {side}"
            yield Suspect(name, sentence, evidence.target.error, after)
            return


def _fit(setting: Setting, key: str, side: Array) -> tuple[float, float]:
    """The number with which attention gives this side best, and what error is left."""

    def values(log: float) -> Array:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return np.nan_to_num(attend(setting, {key: math.exp(log)})).ravel()

    goal = side.ravel()
    grid = np.linspace(-7.0, 12.0, 77)
    sizes = [float(np.linalg.norm(values(log) - goal)) for log in grid]
    log, best, step = float(grid[int(np.argmin(sizes))]), min(sizes), 1e-6
    for _ in range(12):  # Gauss-Newton: the rest is nearly linear there
        here = values(log) - goal
        slope = (values(log + step) - here - goal) / step
        if not np.any(slope):
            break
        move = float(np.vdot(slope, here) / np.vdot(slope, slope))
        if abs(log - move) > _FARTHEST:
            break
        size = float(np.linalg.norm(values(log - move) - goal))
        if not size < best:
            break
        log, best = log - move, size
    return math.exp(log), _error(setting, {key: math.exp(log)}, side)


def _error(setting: Setting, change: Mapping[str, Any], side: Array) -> float:
    try:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            value = attend(setting, change)
    except ValueError:  # a change that these sizes do not allow
        return math.inf
    return relative_error(value, side) if value.shape == side.shape else math.inf


def _settings(evidence: Evidence) -> Iterator[Setting]:
    """Ways to see the parts as queries, keys and values of so many heads."""
    found: dict[str, Array] = {}
    last: dict[str, Part] = {}
    for part in evidence.parts:
        if part.name == evidence.stage:
            break
        words = words_of(part.name)
        for role in _ROLES:
            if role in words and part.outputs:
                found[role], last[role] = _flat(part.outputs[0].torch), part
        if len(part.outputs) == 3:  # one call that gives all three
            found = {r: _flat(v.torch) for r, v in zip(_ROLES, part.outputs, strict=True)}
        if "out" in words and part.alone and part.inputs:
            last["out"] = part
    if len(found) < 3 or any(array.ndim != 3 for array in found.values()):
        return
    query, key, value = (found[role] for role in _ROLES)
    biases = [_own_bias(evidence, last.get(role)) for role in _ROLES]
    known = [bias for bias in biases if bias is not None]
    after = _after(evidence, last.get("out"), query.shape)
    for mask in _masks(evidence, query.shape[:2]):
        for heads in _head_counts(evidence, query.shape[-1], key.shape[-1]):
            half = query.shape[-1] // heads // 2
            tables = [v.torch for v in evidence.inputs if v.torch.shape[-1:] == (half,)]
            both = (tables[0], tables[1]) if len(tables) == 2 else None
            three = (known[0], known[1], known[2]) if len(known) == 3 else None
            yield Setting(query, key, value, heads, both, mask, three, *after)


def _masks(evidence: Evidence, shape: tuple[int, ...]) -> Iterator[Array | None]:
    """Who may see whom: as an input says, or the past; keys that are no padding; or everyone."""
    inputs = [v.torch for v in evidence.inputs]
    length = shape[-1]
    yield next((a for a in inputs if a.dtype == bool and a.shape[-2:] == (length,) * 2), None)
    for array in inputs:
        if array.shape == shape and np.isin(array, (0, 1)).all() and not array.all():
            kept = array.astype(bool)[:, None]
            yield np.broadcast_to(kept, (*shape, length))
            yield np.tril(np.ones((length, length), bool)) & kept
    yield np.ones((1, length, length), bool)


def _own_bias(evidence: Evidence, part: Part | None) -> Array | None:
    """The bias of a layer that PyTorch alone calls."""
    if part is None or not part.alone:
        return None
    bias = getattr(evidence.module.get_submodule(part.name), "bias", None)
    return None if bias is None else np.asarray(to_numpy(bias.detach()), np.float64)


def _after(
    evidence: Evidence, out: Part | None, shape: tuple[int, ...]
) -> tuple[Array | None, Array | float]:
    """The matrix that PyTorch multiplies the heads with, and what it adds to that."""
    if out is None:
        return None, 0.0
    weight = getattr(evidence.module.get_submodule(out.name), "weight", None)
    mixed = _flat(out.inputs[0].torch)
    side = evidence.target.torch
    if weight is None or weight.ndim != 2 or mixed.shape != shape:
        return None, 0.0
    kernel = np.asarray(to_numpy(weight.detach()), np.float64).T
    projected = mixed @ kernel if kernel.shape[0] == mixed.shape[-1] else None
    if projected is None or projected.shape != side.shape:
        return None, 0.0
    return kernel, side - projected


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
