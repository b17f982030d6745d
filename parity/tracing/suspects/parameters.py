"""Hypotheses about a tensor that is not the same on both sides: how did it become so?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from parity.tracing.errors import relative_error
from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import Evidence, Parameter

Array = NDArray[Any]
Changed = tuple[str, str, Array]  # name, what it looks like, the tensor that would have become so
_EQUAL = 1e-12
_ROUNDED = (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16), ("float32", np.float32))


def parameter_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What became of every tensor that differs; each is tried by putting the right one back."""
    for parameter in evidence.parameters:
        if relative_error(parameter.torch, parameter.flax) <= _EQUAL:
            continue
        after = evidence.with_parameters({parameter.link.flax: parameter.torch})
        name, looks = _looks(parameter, evidence)
        if suspect := evidence.judge(name, f"{parameter.name} {looks}", after):
            yield suspect


def _looks(parameter: Parameter, evidence: Evidence) -> tuple[str, str]:
    """The name of what happened to a tensor, and words for it."""
    one, other = parameter.torch, parameter.flax
    reordered = np.array_equal(np.sort(one, axis=None), np.sort(other, axis=None))
    changes = _reordered if reordered else _changed
    # Either side may be the right one.
    for a, b, side in ((one, other, ""), (other, one, " (on the PyTorch side)")):
        for name, words, changed in changes(a):
            if changed.shape == b.shape and relative_error(changed, b) <= _EQUAL:
                return name, words + side
    for link, array in evidence.others:
        same = array.shape == other.shape and np.array_equal(array, other)
        if same and link.flax != parameter.link.flax:
            return "weight-of-another", f"holds the values of {link.torch}"
    differing = int(np.count_nonzero(one != other))
    if reordered:
        return "weight-reordered", f"has its values in another order ({differing} moved)"
    return "weight-differs", f"differs in {differing} of {one.size} values"


def _changed(array: Array) -> Iterator[Changed]:
    """What a port may do to the values of a tensor."""
    yield "weight-zero", "is all zeros", np.zeros_like(array)
    yield "weight-one", "is all ones", np.ones_like(array)
    yield "weight-negated", "has the other sign", -array
    yield "weight-plus-one", "looks stored as 1 + w", array + 1
    for name, dtype in _ROUNDED:
        rounded = array.astype(dtype).astype(np.float64)
        yield "weight-rounded", f"is rounded to {name}", rounded
    yield from _scaled(array)


def _reordered(array: Array) -> Iterator[Changed]:
    """What a port may do to the order of a tensor; kernels lie as (in, out)."""
    if array.ndim == 2:
        yield "weight-transposed", "looks transposed", array.T
    for axis in range(array.ndim):
        side = ("inputs", "outputs")[axis] if array.ndim == 2 else f"axis {axis}"
        yield "weight-flipped", f"is flipped along its {side}", np.flip(array, axis)
        for step in (1, -1):
            moved = np.roll(array, step, axis)
            yield "weight-shifted", f"is shifted by {step} along its {side}", moved
        for heads, size in _divisions(array.shape[axis]):
            words = f"looks interleaved: rotary halves of {heads} heads of {size}, in its {side}"
            for shape in ((heads, 2, size // 2), (heads, size // 2, 2)) if size % 2 == 0 else ():
                yield "rope-interleaved", words, _regroup(array, axis, shape)
        for first, second in _divisions(array.shape[axis]):
            words = f"looks grouped as {second} x {first} in place of {first} x {second}"
            regrouped = _regroup(array, axis, (1, first, second))
            yield "heads-regrouped", f"{words}, in its {side}", regrouped


def _scaled(array: Array) -> Iterator[Changed]:
    """Multiplied by what models multiply with: roots of sizes, halves and doubles."""
    factors = {2.0, 0.5, *(float(n) ** p for n in array.shape for p in (0.5, -0.5, 1.0, -1.0))}
    for factor in sorted(factors - {1.0}):
        yield "weight-scaled", f"is scaled by {factor:.4g}", array * factor


def _divisions(size: int) -> list[tuple[int, int]]:
    """Ways to see an axis as so many groups of so many."""
    return [(n, size // n) for n in range(1, size + 1) if size % n == 0 and size // n > 1]


def _regroup(array: Array, axis: int, shape: tuple[int, int, int]) -> Array:
    """Swap the two inner axes that an axis is made of."""
    moved = np.moveaxis(array, axis, 0)
    grouped = moved.reshape(*shape, *moved.shape[1:]).swapaxes(1, 2)
    return np.moveaxis(grouped.reshape(moved.shape), 0, axis)
