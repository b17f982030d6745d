"""Hypotheses about a value alone: how would it have to be changed to be the other side's?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import ROUNDED, Evidence

Array = NDArray[Any]


def output_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """A factor, a constant, a shift, another order, a rounding."""
    one, other = evidence.target.torch, evidence.target.flax
    if one.dtype != np.float64:
        return
    what = f"what goes into {evidence.stage}" if evidence.stage else "the output"
    found = [
        *_factor(evidence, one, other, what),
        *_capped(evidence, one, other, what),
        *_constant(evidence, one, other, what),
        *_moved(evidence, one, other, what),
        *_rounded(evidence, one, other, what),
        *_by_channel(evidence, one, other, what),
    ]
    yield from (suspect for suspect in found if suspect is not None)


def _factor(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    size = float(np.vdot(one, one))
    if not size:
        return
    factor = float(np.vdot(one, other)) / size
    if not np.any(other):
        yield e.judge("output-zero", f"{what} is zero in {e.odd}", 0.0)
    elif factor:
        known = _known_factor(
            factor, [*one.shape, *(d for p in e.parameters for d in p.torch.shape)]
        )
        yield e.suspect(
            "scale",
            f"{what} is {factor:.6g}{known} times {e.usual}'s in {e.odd}",
            one * factor,
            other,
        )


def _capped(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    """Values that are bounded: cut off, or squeezed by c * tanh(x / c); or of length 1."""
    limit = float(np.abs(other).max())
    if limit < np.abs(one).max():
        clipped = np.clip(one, other.min(), other.max())
        yield e.suspect("clipped", f"{what} is cut off at {limit:.6g} in {e.odd}", clipped, other)
        cap = _cap(one, other)
        if cap is not None:
            words = f"{what} is softly capped in {e.odd}: {cap:.6g} * tanh(x / {cap:.6g})"
            yield e.suspect("softcap", words, cap * np.tanh(one / cap), other)
    size = np.linalg.norm(one, axis=-1, keepdims=True) if one.ndim else 0
    if one.ndim and np.all(size):
        width = one.shape[-1]
        for factor, text in ((1.0, "length 1"), (width**0.5, "a mean square of 1")):
            words = f"{what} is normalised to {text} in {e.odd}"
            yield e.suspect("normalised", words, one / size * factor, other)
    yield e.suspect("negative", f"{what} has the other sign in {e.odd}", -one, other)
    for name, function in (
        ("softmax", lambda a: _softmax(a)),
        ("log-softmax", lambda a: np.log(np.maximum(_softmax(a), 1e-300))),
    ):
        if one.ndim:
            yield e.suspect(
                name, f"{what} has gone through {name} in {e.odd}", function(one), other
            )


def _cap(one: Array, other: Array) -> float | None:
    """The c of c * tanh(x / c), from the values that it changes most; None where there is none."""
    x, y = (float(a.ravel()[np.abs(one).argmax()]) for a in (one, other))
    if not 0 < y / x < 1:
        return None
    try:
        return float(brentq(lambda c: c * math.tanh(x / c) - y, abs(y), 1e6 * abs(x), xtol=1e-14))
    except ValueError:  # no sign change: another function
        return None


def _softmax(array: Array) -> Array:
    weights = np.exp(array - array.max(-1, keepdims=True))
    normal: Array = weights / weights.sum(-1, keepdims=True)
    return normal


def _by_channel(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    """Every channel has a factor of its own: a weight that one side does not multiply with."""
    if one.ndim < 2 or one[..., :1].size < 4:
        return
    axes = tuple(range(one.ndim - 1))
    sizes = np.square(one).sum(axes)
    factors = np.divide((one * other).sum(axes), sizes, out=np.ones_like(sizes), where=sizes > 0)
    names = (
        [
            p.name
            for p in e.parameters
            if p.torch.shape == factors.shape
            and any(np.allclose(factors, w, rtol=1e-6) for w in (p.torch, 1 / p.torch))
        ]
        if all(np.all(p.torch) for p in e.parameters if p.torch.shape == factors.shape)
        else []
    )
    words = f"every channel of {what} has a factor of its own in {e.odd}"
    words += f": {names[0]}" if names else f" ({factors.min():.3g} to {factors.max():.3g})"
    yield e.suspect("channel-scaled", words, one * factors, other)
    axes = tuple(range(one.ndim))[-1:]
    sizes = np.square(one).sum(axes, keepdims=True)
    factors = np.divide(
        (one * other).sum(axes, keepdims=True), sizes, out=np.ones_like(sizes), where=sizes > 0
    )
    words = f"every token of {what} has a factor of its own in {e.odd}"
    words += f" ({factors.min():.3g} to {factors.max():.3g})"
    yield e.suspect("token-scaled", words, one * factors, other)


def _known_factor(factor: float, sizes: list[int]) -> str:
    """Where a factor is the root of a size, which."""
    for size in sorted(set(sizes)):
        for power, text in ((0.5, "sqrt({})"), (-0.5, "1/sqrt({})"), (1.0, "{}"), (-1.0, "1/{}")):
            if size > 1 and abs(factor / size**power - 1) < 1e-6:
                return f" = {text.format(size)}"
    return ""


def _constant(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    """The same vector added everywhere: a bias."""
    if one.ndim < 2:
        return
    difference = (other - one).reshape(-1, one.shape[-1]).mean(axis=0)
    biases = {n: a for side in (e.torch_only, e.flax_only) for n, a in side.items()}
    biases |= {p.name: p.torch for p in e.parameters}
    for name, bias in biases.items():
        flat = np.asarray(bias, np.float64).ravel()
        if flat.size != difference.size or not np.any(flat):
            continue
        added = f"added in {e.odd}, not in {e.usual}"
        for sign, words in ((-1, f"left out in {e.odd}"), (1, added)):
            yield e.suspect("bias-dropped", f"{name} looks {words}", one + sign * flat, other)
    yield e.suspect("constant", f"{what} differs by one vector everywhere", one + difference, other)


def _moved(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    if one.ndim >= 3:
        for axis in range(1, one.ndim - 1):
            ahead = [slice(None)] * one.ndim
            behind = list(ahead)
            ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
            if one.shape[axis] > 2:
                for a, b, words in ((ahead, behind, "ahead"), (behind, ahead, "behind")):
                    yield e.suspect(
                        "shifted",
                        f"{what} is one position {words} of {e.usual}'s in {e.odd}",
                        one[tuple(a)],
                        other[tuple(b)],
                    )
    for axis in range(one.ndim):
        if one.shape[axis] > 1:
            name = "channels" if axis == one.ndim - 1 else f"axis {axis}"
            words = f"{what} is in the reverse order along its {name} in {e.odd}"
            yield e.suspect("flipped", words, np.flip(one, axis), other)
            words = f"{what} has its halves exchanged along its {name} in {e.odd}"
            half = one.shape[axis] // 2
            yield e.suspect("halves", words, np.roll(one, half, axis), other)
    size = one.shape[-1] if one.ndim else 1
    for n in (n for n in range(2, size) if size % n == 0):
        regrouped = one.reshape(*one.shape[:-1], n, size // n).swapaxes(-1, -2).reshape(one.shape)
        words = f"{what} is grouped as {size // n} x {n} in place of {n} x {size // n}"
        yield e.suspect("heads-regrouped", words, regrouped, other)
    if one.ndim >= 2 and one.shape[-1] == one.shape[-2]:
        yield e.suspect("transposed", f"{what} looks transposed", one.swapaxes(-1, -2), other)


def _rounded(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    for name, dtype in ROUNDED.items():
        words = f"{what} is rounded to {name} in {e.odd}"
        yield e.suspect("rounded", words, one.astype(dtype).astype(np.float64), other)

    largest = float(np.abs(one).max())
    if one.ndim:
        step = np.abs(one).max(-1, keepdims=True) / 127
        for text, s in (("one scale", largest / 127), ("one scale for each token", step)):
            with np.errstate(divide="ignore", invalid="ignore"):
                words = f"{what} is quantised to 8 bits in {e.odd}, {text}"
                yield e.suspect("quantised", words, np.nan_to_num(np.rint(one / s) * s), other)


# Half a unit in the last place, relative, of the dtypes that are narrower.
_UNITS = {"float32": 2.0**-24, "TF32 or float16": 2.0**-11, "bfloat16": 2.0**-8}
_ROUNDINGS = 16.0  # an error of more of these units is no rounding


def rounding_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """Differences as small, and as patternless, as those of a narrower dtype.

    Which way a sum is rounded depends on its order, so that this error cannot be made to vanish:
    it is told by its size, and by having no part that is proportional to the value.
    """
    one, other = evidence.target.torch, evidence.target.flax
    if one.dtype != np.float64 or not np.isfinite(other).all() or not np.any(one):
        return
    error = evidence.target.error
    unit = min(_UNITS, key=lambda name: abs(np.log(error / _UNITS[name])))
    if not 1 / _ROUNDINGS < error / _UNITS[unit] < _ROUNDINGS or evidence.dtype == unit:
        return
    difference = other - one
    proportional = abs(float(np.vdot(one, difference))) / float(np.vdot(one, one))
    scale = float(np.sqrt(np.mean(one**2)))
    largest = float(np.max(np.abs(difference) / (np.abs(one) + scale)))
    if proportional < error / 2 and largest < _ROUNDINGS * _UNITS[unit]:
        what = f"what goes into {evidence.stage}" if evidence.stage else "the output"
        words = f"{what} differs as by rounding to {unit}: {error / _UNITS[unit]:.2g} units of it"
        yield Suspect(f"precision-{unit.split()[0]}", words, error, None)
