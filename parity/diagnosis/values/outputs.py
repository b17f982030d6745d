"""Hypotheses about a value alone: how would it have to be changed to be the other side's?"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from parity.diagnosis.evidence import ROUNDED, Evidence
from parity.diagnosis.values.places import where_it_is
from parity.tracing.result import Suspect

Array = NDArray[Any]


def output_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """A factor, a constant, a shift, another order, a rounding."""
    one, other = evidence.target.torch, evidence.target.flax
    if (
        one.dtype != np.float64
        or not one.size
        or not (np.isfinite(one).all() and np.isfinite(other).all())
    ):
        return  # numbers that are fitted to these would explain anything
    what = evidence.what
    found = [
        *_zeroed(evidence, one, other, what),
        *_factor(evidence, one, other, what),
        *_capped(evidence, one, other, what),
        *_normalised(evidence, one, other, what),
        *_constant(evidence, one, other, what),
        *_moved(evidence, one, other, what),
        *_rounded(evidence, one, other, what),
    ]
    yield from (suspect for suspect in found if suspect is not None)


def channel_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """A factor for each channel or token: after all that has fewer numbers to fit."""
    one, other = evidence.target.torch, evidence.target.flax
    if one.dtype == np.float64 and np.isfinite(one).all() and np.isfinite(other).all():
        yield from filter(None, _by_channel(evidence, one, other, evidence.what))


def _zeroed(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    """Values that are zero on one side alone."""
    zero = (other == 0) & (one != 0)
    if zero.any() and np.any(other):
        places = where_it_is(zero) or f"{zero.mean():.0%} of its values"
        words = f"{what} is zero in {places} in {e.odd}"
        yield e.suspect("part-zero", words, np.where(zero, 0.0, one), other)
        share = 1 - float(zero.mean())
        words = f"{what} has {1 - share:.0%} of its values zeroed, the others scaled, in {e.odd}"
        kept = float(np.vdot(one[~zero], other[~zero]) / np.vdot(one[~zero], one[~zero]))
        dropped = np.where(zero, 0.0, one * kept)
        yield e.suspect("dropout", f"{words}: dropout is on", dropped, other)


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
    yield e.suspect("negative", f"{what} has the other sign in {e.odd}", -one, other)
    for name, function in (
        ("softmax", lambda a: _softmax(a)),
        ("log-softmax", lambda a: np.log(np.maximum(_softmax(a), 1e-300))),
    ):
        if one.ndim:
            yield e.suspect(
                name, f"{what} has gone through {name} in {e.odd}", function(one), other
            )


def _normalised(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    """A norm without a weight, with the eps that explains it."""
    if not one.ndim or one.shape[-1] < 2:
        return
    length = np.linalg.norm(one, axis=-1, keepdims=True)
    if np.all(length):
        words = f"{what} is normalised to length 1 in {e.odd}"
        yield e.suspect("normalised", words, one / length, other)
    for said, y in (
        ("is", one),
        ("has its mean subtracted and is", one - one.mean(-1, keepdims=True)),
    ):
        square = np.square(y).mean(-1, keepdims=True)
        products = (y * other).mean(-1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            eps = float(np.median(np.square(square / products) - square))
        eps = float(f"{eps:.3g}") if eps > _NO_EPS else 0.0
        if eps < 1 and np.all(square + eps):
            words = f"{what} {said} normalised to a mean square of 1 in {e.odd}, eps {eps:g}"
            yield e.suspect("normalised", words, y / np.sqrt(square + eps), other)


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
    scaled = e.suspect("channel-scaled", words, one * factors, other)
    yield scaled
    if scaled is None and one[..., 0].size >= _TELLING:
        yield _normalised_otherwise(e, one, other, what)
    axes = tuple(range(one.ndim))[-1:]
    sizes = np.square(one).sum(axes, keepdims=True)
    factors = np.divide(
        (one * other).sum(axes, keepdims=True), sizes, out=np.ones_like(sizes), where=sizes > 0
    )
    words = f"every token of {what} has a factor of its own in {e.odd}"
    largest = float(np.abs(factors - 1).max())
    if largest < _NARROW:
        words += f", 1 to {largest:.1e}: its statistics are rounded"
    else:
        words += f" ({factors.min():.3g} to {factors.max():.3g})"
    yield e.suspect("token-scaled", words, one * factors, other)


def _normalised_otherwise(e: Evidence, one: Array, other: Array, what: str) -> Suspect | None:
    """Every channel has a factor and an offset of its own, as of an image's mean and deviation."""
    axes = tuple(range(one.ndim - 1))
    if not np.ptp(other, axes).all():
        return None  # a constant is anything times 0, plus itself
    mean, mean_2 = one.mean(axes), other.mean(axes)
    sizes = np.square(one - mean).sum(axes)
    products = ((one - mean) * (other - mean_2)).sum(axes)
    factors = np.divide(products, sizes, out=np.zeros_like(sizes), where=sizes > 0)
    offsets = mean_2 - factors * mean
    shown = [", ".join(f"{n:.4g}" for n in a[:4]) for a in (factors, offsets)]
    words = f"{what} is {shown[0]} times {e.usual}'s, plus {shown[1]}, by channel in {e.odd}: "
    words += "normalised with another mean and deviation"
    return e.suspect("channel-normalised", words, one * factors + offsets, other)


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
    if one.ndim >= 3 and len(one) > 1:
        table = (other - one).mean(axis=0)
        words = f"{what} differs by the same table in every row: something that depends on position"
        yield e.suspect("position-table", words, one + table, other)


def _moved(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    yield from along(e, one, other, what)
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
        groups = one.reshape(*one.shape[:-1], n, size // n)
        words = f"{what} has its {n} groups of {size // n} channels (heads) in the reverse order"
        turned = groups[..., ::-1, :].reshape(one.shape)
        yield e.suspect("heads-reversed", f"{words} in {e.odd}", turned, other)
    for axes in itertools.permutations(range(one.ndim)) if 2 <= one.ndim <= _AXES else ():
        if tuple(one.shape[a] for a in axes) == one.shape and axes != tuple(range(one.ndim)):
            words = f"{what} looks transposed by {axes}"
            yield e.suspect("transposed", words, one.transpose(axes), other)


def along(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    """Shifted by one along an axis that is not the batch."""
    for axis in range(1, one.ndim if one.dtype.kind in "iu" else one.ndim - 1):
        ahead = [slice(None)] * one.ndim
        behind = list(ahead)
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        if one.shape[axis] > (2 if one.dtype.kind in "iu" else 1):
            for a, b, words in ((ahead, behind, "ahead of"), (behind, ahead, "behind")):
                said = f"{what} is one position {words} {e.usual}'s in {e.odd}"
                yield e.suspect("shifted", said, one[tuple(a)], other[tuple(b)])


def _rounded(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    for name, dtype in ROUNDED.items():
        words = f"{what} is rounded to {name} in {e.odd}"
        with np.errstate(over="ignore"):
            narrow = one.astype(dtype).astype(np.float64)
        yield e.suspect("rounded", words, narrow, other)

    largest = float(np.abs(one).max())
    if one.ndim:
        step = np.abs(one).max(-1, keepdims=True) / 127
        for text, s in (("one scale", largest / 127), ("one scale for each token", step)):
            with np.errstate(divide="ignore", invalid="ignore"):
                words = f"{what} is quantised to 8 bits in {e.odd}, {text}"
                yield e.suspect("quantised", words, np.nan_to_num(np.rint(one / s) * s), other)


_NO_EPS = 1e-13
_NARROW = 1e-2  # a factor as near to 1 is that of a narrower dtype
_TELLING = 8  # values of a channel, to which two numbers are fitted
_AXES = 4  # 24 orders
