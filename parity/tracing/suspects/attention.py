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
from scipy.optimize import minimize_scalar

from parity.tracing.errors import relative_error
from parity.tracing.infer import words_of
from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import Evidence
from parity.tracing.suspects.reference_attention import Setting, attend

Array = NDArray[Any]
_FITTED = 1e-9  # what is left where a number was fitted
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
    "mask-diagonal": ("mask", "own", "lets each query see its own key only"),
    "mask-causal-only": ("mask", "causal", "masks the future only, not padding or documents"),
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
    for key, name, words in (
        ("factor", "scale-other", "attention multiplies its scores by another {:.6g} in {}"),
        ("cap", "softcap", "attention caps its scores at {:.6g} (c * tanh(x / c)) in {}"),
    ):

        def miss(log: float, key: str = key) -> float:
            return _error(setting, {key: math.exp(log)}, odd)

        grid = np.linspace(-7.0, 7.0, 57)
        start = int(np.argmin([miss(log) for log in grid]))
        low, high = grid[max(start - 1, 0)], grid[min(start + 1, len(grid) - 1)]
        best = minimize_scalar(miss, bounds=(low, high), method="bounded", options={"xatol": 1e-9})
        # The error falls linearly to 0 there: a second look, nearer, finds the last digits.
        near = best.x - 1e-8, best.x + 1e-8
        best = minimize_scalar(miss, bounds=near, method="bounded", options={"xatol": 1e-16})
        if best.fun <= max(_FITTED, evidence.bound) < evidence.target.error:
            sentence = words.format(math.exp(best.x), side)
            yield Suspect(name, sentence, evidence.target.error, float(best.fun))
            return


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
