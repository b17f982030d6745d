"""How far the arrays of two calls are apart, whatever their layouts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.tracing.match.operations import Rearrange, candidates

# Two sides that compute in different orders agree to this, one module alone, in each dtype.
FORWARD = {"float64": 1e-12, "float32": 2e-5, "float16": 5e-3, "bfloat16": 4e-2}
BACKWARD = {"float64": 1e-9, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}
Arrays = Mapping[str, NDArray[Any]]
Axes = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LeafError:
    """One array of the one side against one of the other.

    Attributes:
        torch: and flax: which of the call's arrays.
        error: relative L2; infinity where only one of the two is finite; for integers and booleans
            the share that differs.
        operation: what leads from the PyTorch layout to the Flax layout.
        part: which part of a call that is fused on one side, counted from 0.
        not_finite: where NaN is, or infinity: `the Flax side only`, `both sides` (NaN only).
    """

    torch: str
    flax: str
    error: float
    operation: Rearrange
    part: int = 0
    not_finite: str = ""


def relative_error(one: NDArray[Any], other: NDArray[Any]) -> float:
    """`|one - other| / max(|one|, |other|)`, 0 where both are all zeros.

    Values that are NaN or infinite at the same places in both are left out; where only one side is
    finite, the error is infinite. Integers and booleans: the share that differs.
    """
    if not _is_float(one) or not _is_float(other):
        return float(np.mean(one != other)) if one.size else 0.0
    a, b = one.reshape(-1), other.reshape(-1)
    scale = 1.0
    sums = _squares(a, b, scale)
    if sums is not None and not _SMALL < max(sums[1:]) < math.inf:
        # The squares do not fit into a float64.
        scale = max(float(np.abs(x[np.isfinite(x)]).max(initial=0)) for x in (a, b))
        sums = _squares(a, b, scale) if scale else sums
    if sums is None:
        return math.inf
    difference, *sizes = sums
    return math.sqrt(difference / max(sizes)) if max(sizes) else 0.0


_PART = 1 << 18  # values at a time: they stay in the cache, and a large tensor needs no copy
_SMALL = 1e-280


def _squares(a: NDArray[Any], b: NDArray[Any], scale: float) -> tuple[float, float, float] | None:
    """`|a - b|^2`, `|a|^2` and `|b|^2` in float64, or None if only one is finite somewhere."""
    sums = np.zeros(3)
    for start in range(0, a.size, _PART):
        x, y = (np.asarray(v[start : start + _PART], np.float64) for v in (a, b))
        if scale != 1:
            x, y = x / scale, y / scale
        part = _three(x, y)
        if not math.isfinite(sum(part)):  # values that are not, or squares that are too large
            finite = np.isfinite(x)
            if not np.array_equal(finite, np.isfinite(y)):
                return None
            part = _three(x[finite], y[finite])
        sums += part
    return float(sums[0]), float(sums[1]), float(sums[2])


@np.errstate(over="ignore", invalid="ignore")
def _three(x: NDArray[Any], y: NDArray[Any]) -> list[float]:
    return [float(np.dot(v, v)) for v in (x - y, x, y)]


def not_finite(one: NDArray[Any], other: NDArray[Any], error: float) -> str:
    """On which side there are values that are no numbers, given the error of the two."""
    if not _is_float(one) or not _is_float(other):
        return ""
    if error != math.inf:
        return "both sides" if np.isnan(one).any() else ""
    sides = [bool(np.isfinite(side).all()) for side in (one, other)]
    if any(sides):
        return "the Flax side only" if sides[0] else "the PyTorch side only"
    return "both sides, at other places"


def _is_float(array: NDArray[Any]) -> bool:
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def best_operation(
    one: NDArray[Any],
    other: NDArray[Any],
    enough: float,
    as_it_is: bool = False,
    like: Collection[Axes] = (),
) -> LeafError | None:
    """The layout in which two arrays are nearest; None where no operation fits the shapes.

    The likeliest operation is taken where the error is `enough` small or no other one's is. Masks
    of the same shape are compared as they are: a causal one upside down is its own transposition;
    and so is whatever the caller says. Where no layout makes the two agree, that of the inputs
    (`like`) is taken: of a square image any other one would be a guess.
    """
    if (one.dtype == bool or as_it_is) and one.shape == other.shape:
        return LeafError("", "", relative_error(one, other), next(candidates(one.shape, one.shape)))
    first, best, known = None, None, None
    for operation in candidates(one.shape, other.shape):
        found = LeafError("", "", relative_error(operation(one), other), operation)
        if found.error <= enough:
            return found
        first = first or found
        best = found if best is None or found.error < best.error else best
        if known is None and operation.reorders and operation.axes in like:
            known = found
    if known is not None:
        return known
    return first if first is not None and first.operation.is_identity else best


def compare(
    torch: Arrays,
    flax: Arrays,
    enough: float,
    as_it_is: bool = False,
    like: Collection[Axes] = (),
) -> list[LeafError]:
    """The arrays of two calls, matched: in order where their shapes allow it, else by value.

    With `as_it_is` those of the same shape have the same layout too; `like` are the orders of axes
    in which what went in agreed. Arrays without a partner are left out: one side may pass more
    along than the other.
    """
    found: list[LeafError] = []
    ones, others = list(torch), list(flax)
    if len(ones) == len(others):
        found = [
            _named(best, torch, flax, a, b)
            for a, b in zip(ones, others, strict=True)
            if _alike(torch[a], flax[b])
            and (best := best_operation(torch[a], flax[b], enough, as_it_is, like)) is not None
        ]
        if len(found) == len(ones):
            return found
    pairs = [
        _named(best, torch, flax, a, b)
        for a in ones
        for b in others
        if _alike(torch[a], flax[b])
        and (best := best_operation(torch[a], flax[b], enough, as_it_is, like)) is not None
    ]
    found, used = [], set[str]()
    for pair in sorted(pairs, key=lambda p: p.error):
        keys = {f"torch {pair.torch}", f"flax {pair.flax}"}
        if not keys & used:
            used |= keys
            found.append(pair)
    return found


def _named(best: LeafError, torch: Arrays, flax: Arrays, a: str, b: str) -> LeafError:
    where = not_finite(torch[a], flax[b], best.error)
    return dataclasses.replace(best, torch=a, flax=b, not_finite=where)


def _alike(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return _is_float(one) == _is_float(other) and one.size > 0


def worst(errors: list[LeafError]) -> float:
    """The largest error; 0 where nothing was compared."""
    return max((error.error for error in errors), default=0.0)


def precision(*arrays: NDArray[Any]) -> str:
    """The least precise float dtype among these: that by which they are judged."""
    names = {array.dtype.name for array in arrays if _is_float(array)}
    order = ("bfloat16", "float16", "float32", "float64")
    return next((name for name in order if name in names), "float64")
