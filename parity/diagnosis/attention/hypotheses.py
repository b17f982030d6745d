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

from diy_torch.tensors import to_numpy
from parity.diagnosis.attention.changes import CHANGES, NUMBERS, SIZES, THETA
from parity.diagnosis.attention.reference import Setting, attend
from parity.diagnosis.attention.reference_rotary import Tables
from parity.diagnosis.evidence import Evidence, Part
from parity.tracing.compare.errors import relative_error
from parity.tracing.match.names import words_of
from parity.tracing.result import Suspect

Array = NDArray[Any]
Change = Mapping[str, Any]
_FARTHEST = 20.0  # of the logarithm of a number that is sought
_FITTED = 1e-9  # what is left where a number was fitted
_ROLES = ("query", "key", "value")
_LOW = -1e3  # of what hides a score
_THETAS = (1e4, 1e5, 5e5, 1e6)
_HEADS = ("heads", "num_heads", "num_attention_heads", "n_head", "n_heads", "nhead", "h")


def attention_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What the Flax side does otherwise between its projections."""
    one, other = (_flat(side) for side in (evidence.target.torch, evidence.target.flax))
    for setting in _settings(evidence):
        for base in _bases(evidence, setting):
            plain = _error(setting, base, one), _error(setting, base, other)
            # One of the sides has to be the usual one, the other is that with one change.
            for usual, odd, side in ((plain[0], other, "Flax"), (plain[1], one, "PyTorch")):
                if usual <= evidence.bound:
                    found = [*_changed(evidence, setting, base, odd, side)]
                    yield from found
                    if found:
                        return


def _bases(evidence: Evidence, setting: Setting) -> Iterator[Change]:
    """Ways that are usual: with the tables that were given or with tables of its own, unscaled."""
    thetas = [*_own_thetas(evidence), *_THETAS] if setting.tables is None else []
    for scale in ({}, {"scale": "none"}):
        yield scale
        for theta in dict.fromkeys(thetas):
            yield {**scale, "theta": theta}
            yield {**scale, "theta": theta, "rope": "interleaved"}


def _own_thetas(evidence: Evidence) -> Iterator[float]:
    """What the PyTorch module or its config calls theta."""
    for owner in (evidence.module, getattr(evidence.module, "config", None)):
        for name in ("rope_theta", "theta", "rotary_base", "base"):
            value = getattr(owner, name, None)
            if isinstance(value, int | float) and value > 1:
                yield float(value)


def _changed(
    evidence: Evidence, setting: Setting, base: Change, odd: Array, side: str
) -> Iterator[Suspect]:
    """What is otherwise on the odd side, where the other one is the base."""
    found = False
    past = np.tril(np.ones((setting.query.shape[1],) * 2, bool))
    causal = setting.mask is None or (setting.mask == past).all()  # no padding is hidden
    for name, (key, choice, words) in CHANGES.items():
        if base.get(key) == choice or (causal and "mask-queries" in name):
            continue
        after = _error(setting, {**base, key: choice}, odd)
        if suspect := evidence.judge(name, f"attention {words} in {side}", after):
            found = True
            yield suspect
    if "scale" in base:
        after = _error(setting, {key: base[key] for key in base if key != "scale"}, odd)
        words = f"attention scales the scores by 1/sqrt(H) in {side}, and not on the other side"
        if suspect := evidence.judge("scale-added", words, after):
            found = True
            yield suspect
    if not found:
        yield from _fitted(evidence, setting, base, odd, side)


def _fitted(
    evidence: Evidence, setting: Setting, base: Change, odd: Array, side: str
) -> Iterator[Suspect]:
    """Changes by a number that has to be found: a window's size, a factor, a cap."""
    for key, name, words in SIZES:
        for size in range(1, setting.query.shape[1]):
            after = _error(setting, {**base, key: size}, odd)
            sentence = f"attention {words.format(size)} in {side}"
            if suspect := evidence.judge(name, sentence, after):
                yield suspect
                return
    turned = "theta" in base or setting.tables is not None
    numbers = (*NUMBERS, *(THETA[: 1 + ("theta" in base)] if turned else ()))
    for key, name, words in numbers:
        number, after = _fit(setting, base, key, odd)
        if after <= max(_FITTED, evidence.bound) < evidence.target.error:
            sentence = f"attention {words.format(number)} in {side}"
            if key == "theta" and "theta" in base:
                sentence += f", {base['theta']:.6g} on the other side"
            yield Suspect(name, sentence, evidence.target.error, after)
            return


def _fit(setting: Setting, base: Change, key: str, side: Array) -> tuple[float, float]:
    """The number with which attention gives this side best, and what error is left."""

    def values(log: float) -> Array:
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return np.nan_to_num(attend(setting, {**base, key: math.exp(log)})).ravel()

    goal = side.ravel()
    grid = np.linspace(-7.0, 17.0 if key == "theta" else 12.0, 97)
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
    number, after = math.exp(log), _error(setting, {**base, key: math.exp(log)}, side)
    for digits in (1, 2, 3, 4):  # people write short numbers, and narrow dtypes blur them
        short = float(f"{number:.{digits}g}")
        error = _error(setting, {**base, key: short}, side)
        if error <= 2 * after:
            return short, error
    return number, after


def _error(setting: Setting, change: Change, side: Array) -> float:
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
            tables = _tables(evidence, query.shape[-1] // heads)
            three = (known[0], known[1], known[2]) if len(known) == 3 else None
            for bias in _score_biases(evidence, heads, query.shape[1]):
                yield Setting(query, key, value, heads, tables, mask, bias, three, *after)


def _tables(evidence: Evidence, head_dim: int) -> Tables | None:
    """Cos and sin among the inputs: of each pair of channels, or once for each of its two."""
    for width in (head_dim // 2, head_dim):
        found = [_of_rows(a) for a in _given(evidence) if a.shape[-1:] == (width,)]
        both = [a for a in found if a.ndim == 3 and np.abs(a).max(initial=0) <= 1 + _FITTED]
        if len(both) == 2:
            return both[0][..., : head_dim // 2], both[1][..., : head_dim // 2]
    return None


def _of_rows(array: Array) -> Array:
    """(S, H) as (1, S, H)."""
    return array[None] if array.ndim == 2 else array


def _score_biases(evidence: Evidence, heads: int, length: int) -> Iterator[Array | None]:
    """What may be added to the scores, (B or 1, N, S, S): an input, or what a part gave."""
    square = (length, length)
    values = _given(evidence)
    for part in evidence.parts:
        values += [v.torch for v in part.outputs if part.name != evidence.stage]
    yield None
    for array in values:
        if array.dtype != np.float64:
            continue
        if array.shape[-3:] == (heads, *square):
            yield array.reshape(-1, heads, *square)
        elif array.shape[-3:] == (*square, heads):
            yield np.moveaxis(array.reshape(-1, *square, heads), -1, 1)


def _masks(evidence: Evidence, shape: tuple[int, ...]) -> Iterator[Array | None]:
    """Who may see whom: as an input says, or the past; keys that are no padding; or everyone."""
    length = shape[-1]
    causal = np.tril(np.ones((1, length, length), bool))
    found: list[Array] = []
    for array in _given(evidence):
        shown = _shown(array)
        if shown is None or shown.shape[-1:] != (length,) or shown.all():
            continue
        if shown.ndim > 1 and shown.shape[-2] == length:
            if shown.size == len(shown) * length**2 or shown.ndim == 2:  # the same for all heads
                found.insert(0, shown.reshape(-1, length, length))
        elif shown.size == shape[0] * length:  # keys that are no padding
            kept = np.broadcast_to(shown.reshape(-1, 1, length), (*shape, length))
            found += [kept, causal & kept]
    yield from found
    yield None
    yield np.ones((1, length, length), bool)


def _shown(array: Array) -> Array | None:
    """A mask: of truth values, of 0 and 1, or what is added to scores: 0 and the lowest number."""
    values = np.unique(array)
    if array.dtype == bool or (array.size and np.isin(values, (0, 1)).all()):
        return array.astype(bool)
    return array == 0 if len(values) == 2 and values[1] == 0 and values[0] < _LOW else None


def _given(evidence: Evidence) -> list[Array]:
    """All arrays that go in, on both sides or in PyTorch alone."""
    return [*(v.torch for v in evidence.inputs), *evidence.given]


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
