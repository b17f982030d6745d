"""Euclidean norms of values whose squares would be infinite or nothing."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Between them no square of a value that matters overflows or vanishes, nor does a sum of squares.
_LEAST, _MOST = 1e-140, 1e140


def norm(values: NDArray[Any]) -> float:
    """The norm of all values; infinite or not a number where one of them is."""
    flat = np.asarray(values, np.float64).reshape(-1)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        plain = float(np.linalg.norm(flat))
    scale = 1.0 if _LEAST < plain < _MOST else power_of_two(flat)
    if scale == 1:
        return plain
    return float(np.linalg.norm(flat * scale)) / scale


def norms(rows: NDArray[Any]) -> NDArray[np.float64]:
    """The norm of each row of a matrix, (rows,)."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        plain = np.linalg.norm(np.asarray(rows, np.float64), axis=1)
    for row in np.flatnonzero(~((plain > _LEAST) & (plain < _MOST))):
        plain[row] = norm(rows[row])
    return plain


def power_of_two(*arrays: NDArray[Any]) -> float:
    """What to multiply values with, without rounding any, so that the largest is near 1; or 1."""
    largest = max((float(np.abs(array).max(initial=0.0)) for array in arrays), default=0.0)
    if not math.isfinite(largest) or largest == 0:
        return 1.0
    # One power less at both ends: neither it nor 1 / it may overflow.
    return math.ldexp(1.0, min(max(-math.frexp(largest)[1], -1022), 1022))


class Scales(NamedTuple):
    """Powers of two that bring every norm of a floating-point type to where no square is lost.

    Attributes:
        least: a smaller norm may lack squares that were too small for the type.
        up: for values with a norm below `least`.
        down: for values with an infinite sum of squares.
    """

    least: float
    up: float
    down: float


def scales_of(largest: float) -> Scales:
    """The scales of a floating-point type, by its largest number.

    Between `least` and infinity all is well as it is: what was too small to be squared is nothing
    beside the norm. With the largest of float32 just below 2^128: 2^-30, 2^93 and 2^-66.
    """
    exponent = math.frexp(largest)[1]
    powers = (2 - exponent // 4, 3 * exponent // 4 - 3, -2 - exponent // 2)
    return Scales(*(math.ldexp(1.0, power) for power in powers))
