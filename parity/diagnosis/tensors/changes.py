"""What may have been done to a tensor that became another one: every way is tried."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.evidence import ROUNDED
from parity.diagnosis.tensors.quantised import Changed, quantised
from parity.tracing.compare.errors import relative_error

Array = NDArray[Any]
Order = tuple[str, str, Callable[[Array], Array]]  # name, what it looks like, what to do
_EQUAL = 1e-12
_FEW = 4
_LARGE = 1 << 18  # values of which a tensor that has more is first tried on a part


@np.errstate(all="ignore")  # what overflows explains nothing
def describe(right: Array, wrong: Array) -> tuple[str, str] | None:
    """The name and the words of what leads from one tensor to the other, or None."""
    if not right.size or np.array_equal(right, wrong):
        return None
    right, wrong = (np.asarray(a, np.float64) for a in (right, wrong))
    if same_values(right, wrong):
        ways = _reordered(right, wrong)
    elif _hopeless(right, wrong, _changed):
        ways = quantised(right, wrong)
    else:
        ways = _changed(right, wrong)
    for name, words, changed in ways:
        if changed.shape == wrong.shape and relative_error(changed, wrong) <= _EQUAL:
            return name, words
        del changed  # before the next one is made
    return None


def same_values(one: Array, other: Array) -> bool:
    """Whether two tensors hold the same values, in any order."""
    if one.size != other.size or (one.min(), one.max()) != (other.min(), other.max()):
        return False
    return np.array_equal(np.sort(one, axis=None), np.sort(other, axis=None))


def _hopeless(right: Array, wrong: Array, ways: Callable[..., Iterator[Changed]]) -> bool:
    """Whether a few rows of a large tensor show that none of these changes explains them.

    Only a scale for all of it, as of what is quantised, is not to be seen in a few rows.
    """
    if right.size <= _LARGE or right.ndim < 2:
        return False
    right, wrong = (a[:: max(1, a.size // _LARGE)] for a in (right, wrong))
    if np.array_equal(right, wrong):
        return False
    return not any(relative_error(a, wrong) <= _EQUAL for _, _, a in ways(right, wrong))


def _changed(array: Array, other: Array) -> Iterator[Changed]:
    """What a port may do to the values of a tensor."""
    yield "weight-zero", "is all zeros", np.zeros_like(array)
    yield "weight-one", "is all ones", np.ones_like(array)
    yield "weight-negated", "has the other sign", -array
    yield "weight-plus-one", "looks stored as 1 + w", array + 1
    yield "weight-reciprocal", "looks stored as 1 / w", 1 / np.where(array == 0, np.inf, array)
    yield "weight-absolute", "has lost its signs", np.abs(array)
    with np.errstate(over="ignore"):
        yield "weight-exponential", "is the exponential", np.exp(array)
    for name, dtype in ROUNDED.items():
        for first in (np.float64, np.float32):  # some libraries go by way of float32
            narrow = array.astype(first, copy=False).astype(dtype)
            yield "weight-rounded", f"is rounded to {name}", narrow.astype(np.float64)
    narrow = (array.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    yield "weight-rounded", "is cut off to bfloat16, not rounded", narrow.astype(np.float64)
    del narrow
    limit = float(np.abs(other).max())
    if limit < np.abs(array).max():
        yield "weight-clipped", f"is cut off at {limit:.6g}", np.clip(array, -limit, limit)
    yield "weight-squared", "is squared", np.square(array)
    yield from quantised(array, other)
    yield from _scaled(array, other)


def _scaled(array: Array, other: Array) -> Iterator[Changed]:
    """Multiplied by one number, or each row or column by one of its own."""
    size = float(np.vdot(array, array))
    if not size:
        return
    factor = float(np.vdot(array, other)) / size
    text = f"{factor:.6g}"
    for n in sorted(set(array.shape)):
        for power, root in ((0.5, f"sqrt({n})"), (-0.5, f"1/sqrt({n})"), (-1.0, f"1/{n}")):
            if n > 1 and abs(factor / float(n) ** power - 1) < 1e-9:
                text += f" = {root}"
    if factor and np.isfinite(factor):
        yield "weight-scaled", f"is scaled by {text}", array * factor


@np.errstate(all="ignore")
def fitted(right: Array, wrong: Array) -> tuple[str, str] | None:
    """The same with numbers that are fitted: where nothing simpler explains it."""
    if not right.size or not (np.isfinite(right).all() and np.isfinite(wrong).all()):
        return None
    right, wrong = (np.asarray(a, np.float64) for a in (right, wrong))
    if _hopeless(right, wrong, _fitted):
        return None
    for name, words, changed in _fitted(right, wrong):
        if relative_error(changed, wrong) <= _EQUAL:
            return name, words
    return None


def _fitted(array: Array, other: Array) -> Iterator[Changed]:
    """A number added to all, or a factor for each row or column."""
    pruned = np.where(other == 0, 0.0, array)
    share = float(np.mean((other == 0) & (array != 0)))
    yield "weight-pruned", f"has {share:.0%} of its values set to zero", pruned
    shift = float((other - array).mean())
    yield "weight-shifted-by", f"has {shift:.6g} added everywhere", array + shift
    for axis in (a for a, n in enumerate(array.shape) if array.ndim > 1 and n > 1):
        sizes = np.square(array).sum(axis, keepdims=True)
        products = (array * other).sum(axis, keepdims=True)
        factors = np.divide(products, sizes, out=np.ones_like(sizes), where=sizes > 0)
        each = side_of(array, 1 - axis).rstrip("s") if array.ndim == 2 else "part"
        lengths = np.sqrt(sizes)
        unit = np.divide(array, lengths, out=np.zeros_like(array), where=lengths > 0)
        yield "weight-normalised", f"has each {each} normalised to length 1", unit
        words = f"has a factor of its own for each {each} ({factors.min():.3g} to "
        words += f"{factors.max():.3g}): a norm's weight, or a scale, multiplied in on one side"
        yield "weight-scaled-by-channel", words, array * factors


def _reordered(array: Array, other: Array) -> Iterator[Changed]:
    """What a port may do to the order of a tensor; kernels lie as (in, out)."""
    for name, words, change in _orders(array):
        yield name, words, change(array)
    for axis in range(array.ndim):
        # A few of what lies along the other axes tell.
        few = tuple(slice(None) if a == axis else slice(_FEW) for a in range(array.ndim))
        for name, words, change in _orders_along(array, axis):
            if np.array_equal(change(array[few]), other[few]):
                yield name, words, change(array)


def _orders(array: Array) -> Iterator[Order]:
    if array.ndim == 2:
        yield "weight-transposed", "looks transposed", lambda a: a.T
        yield "weight-reshaped", "looks reshaped where it should be transposed", _reshaped
        yield "weight-reshaped", "looks reshaped where it should be transposed", _unshaped
    elif array.ndim > 2:
        for axes in itertools.permutations(range(array.ndim)):
            words = f"looks transposed by {axes}"
            yield "weight-transposed", words, partial(np.transpose, axes=axes)
        spatial = tuple(range(array.ndim - 2))
        words = "is flipped along its spatial axes"
        yield "weight-flipped", words, partial(np.flip, axis=spatial)


def _orders_along(array: Array, axis: int) -> Iterator[Order]:
    side, length = side_of(array, axis), array.shape[axis]
    yield "weight-flipped", f"is flipped along its {side}", partial(np.flip, axis=axis)
    for step in (1, -1):
        words = f"is shifted by {step} along its {side}"
        yield "weight-shifted", words, partial(np.roll, shift=step, axis=axis)
    for heads, size in divisions(length):
        words = f"looks interleaved: rotary halves of {heads} heads of {size}, in its {side}"
        for shape in ((heads, 2, size // 2), (heads, size // 2, 2)) if size % 2 == 0 else ():
            yield "rope-interleaved", words, partial(_regroup, axis=axis, shape=shape)
    for first, second in divisions(length):
        words = f"looks grouped as {second} x {first} in place of {first} x {second}"
        if first == second:
            words = f"looks transposed within its groups, {first} x {second}"
        regroup = partial(_regroup, axis=axis, shape=(1, first, second))
        yield "heads-regrouped", f"{words}, in its {side}", regroup
    for first, second, size in _triples(length):
        words = (
            f"has its {first} x {second} groups of {size} {side} in the order of {second} x {first}"
        )
        if first == second:
            words = f"has its {first} x {second} groups of {size} {side} transposed"
        regroup = partial(_regroup, axis=axis, shape=(first, second, size), swapped=(0, 1))
        yield "heads-regrouped", words, regroup
    for heads, size in divisions(length):
        for name, words, change in _INSIDE:
            if change is not _halves or size % 2 == 0:
                where = f" each of {heads} groups of {size}" if heads > 1 else " all"
                said = f"has its {side} {words}{where}"
                yield name, said, partial(change, axis=axis, heads=heads)


def _halves(array: Array, axis: int, heads: int) -> Array:
    return _grouped(array, axis, heads, lambda a: np.roll(a, a.shape[1] // 2, 1))


def _reversed(array: Array, axis: int, heads: int) -> Array:
    return _grouped(array, axis, heads, lambda a: a[:, ::-1])


def _turned(array: Array, axis: int, heads: int) -> Array:
    return _grouped(array, axis, heads, lambda a: a[::-1])


_INSIDE: tuple[tuple[str, str, Callable[..., Array]], ...] = (
    ("halves-exchanged", "with the halves exchanged in", _halves),
    ("heads-reversed", "in the reverse order", _turned),
    ("weight-flipped", "in the reverse order within", _reversed),
)


def _grouped(array: Array, axis: int, heads: int, change: Callable[[Array], Array]) -> Array:
    """A change of an axis seen as groups."""
    moved = np.moveaxis(array, axis, 0)
    groups = moved.reshape(heads, -1, *moved.shape[1:])
    return np.moveaxis(change(groups).reshape(moved.shape), 0, axis)


def _reshaped(array: Array) -> Array:
    """(in, out) made of the bytes of (out, in)."""
    return np.ascontiguousarray(array.T).reshape(array.shape)


def _unshaped(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(array.T.shape).T


def divisions(size: int) -> list[tuple[int, int]]:
    """Ways to see an axis as so many groups of so many."""
    return [(n, size // n) for n in range(1, size + 1) if size % n == 0 and size // n > 1]


def _triples(size: int) -> list[tuple[int, int, int]]:
    """Ways to see an axis as groups of groups: a key head repeated for its queries, or tiled."""
    return [
        (first, second, rest // second)
        for first, rest in divisions(size)
        for second in range(2, rest)
        if first > 1 and rest % second == 0 and rest // second > 1
    ]


def _regroup(
    array: Array, axis: int, shape: tuple[int, int, int], swapped: tuple[int, int] = (1, 2)
) -> Array:
    """Swap two, as a rule the inner ones, of the axes that an axis is made of."""
    moved = np.moveaxis(array, axis, 0)
    grouped = moved.reshape(*shape, *moved.shape[1:]).swapaxes(*swapped)
    return np.moveaxis(grouped.reshape(moved.shape), 0, axis)


def side_of(array: Array, axis: int) -> str:
    """What an axis is called: kernels lie as (in, out)."""
    return ("inputs", "outputs")[axis] if array.ndim == 2 else f"axis {axis}"
