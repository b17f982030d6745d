"""Rows, columns and parts of a tensor that alone differ, or stand where others should."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.tensors.changes import side_of

Array = NDArray[Any]
Part = tuple[slice | Array, ...]
_MANY = 1 << 16  # rows that are looked up by their values
_TELLING = 4  # with fewer values anything explains them
_LEVELS = 256
_SAMPLE = 1 << 16  # values that show whether more are worth a look


def part_that_differs(one: Array, other: Array) -> Part | None:
    """The rows, columns, ... in which two tensors differ; None where that is everywhere."""
    differs = (one != other) & ((one == one) | (other == other))  # a NaN is like another
    if not differs.any():
        return None
    axes = [
        np.flatnonzero(differs.any(tuple(a for a in range(one.ndim) if a != axis)))
        for axis in range(one.ndim)
    ]
    if all(len(places) == size for places, size in zip(axes, one.shape, strict=True)):
        return None
    runs: list[slice | Array] = [
        slice(int(p[0]), int(p[-1]) + 1) if _is_run(p) else p for p in axes
    ]
    if sum(not isinstance(r, slice) for r in runs) > 1:
        spans = [slice(int(p[0]), int(p[-1]) + 1) for p in axes]
        if all(r.stop - r.start == size for r, size in zip(spans, one.shape, strict=True)):
            return None
        return tuple(spans)
    return tuple(runs)


def _is_run(places: Array) -> bool:
    return bool(len(places) and len(places) == places[-1] - places[0] + 1)


def place(shape: tuple[int, ...], part: Part) -> str:
    """Where a part lies, in words."""
    said = []
    for axis, (size, places) in enumerate(zip(shape, part, strict=True)):
        side = ("inputs", "outputs")[axis] if len(shape) == 2 else f"axis {axis}"
        if isinstance(places, slice):
            if places.stop - places.start < size:
                last = f" to {places.stop - 1}" if places.stop > places.start + 1 else ""
                said.append(f"{side} {places.start}{last} of {size}")
        else:
            shown = ", ".join(map(str, places[:4])) + (", ..." if len(places) > 4 else "")
            said.append(f"{len(places)} of {size} {side} ({shown})")
    return " and ".join(said)


def rearranged(one: Array, other: Array) -> tuple[str, str] | None:
    """Whole rows or columns that stand in another order, or stand in the place of others."""
    for axis in range(one.ndim) if one.ndim > 1 else ():
        if not one.size:
            break
        rows, moved = (np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) for a in (one, other))
        if len(rows) > _MANY or rows.shape[1] < _TELLING:
            continue
        where = {row.tobytes(): i for i, row in enumerate(rows)}
        order = [where.get(row.tobytes(), -1) for row in moved]
        if -1 not in order and len(where) == len(rows) and order != list(range(len(rows))):
            return _order(order, side_of(one, axis))
    return None


def _order(order: list[int], side: str) -> tuple[str, str]:
    wrong = [i for i, place in enumerate(order) if i != place]
    if len(set(order)) < len(order):
        span, origin = _runs(wrong), _runs(sorted({order[i] for i in wrong}))
        words = f"has {side} {origin} again in the place of {span}"
        return "rows-repeated", words
    first = [i for i in wrong if order[i] > i]
    second = [i for i in wrong if order[i] < i]
    exchanged = all(order[order[i]] == i for i in wrong)
    if exchanged and order[first[0]] == second[0] and _is_run(np.array(first)):
        return "rows-exchanged", f"has {side} {_runs(first)} and {_runs(second)} exchanged"
    block = _block(order)
    blocks = [start // block for start in order[::block]]
    shown = ", ".join(map(str, blocks[:12])) + (", ..." if len(blocks) > 12 else "")
    words = f"has its {side} in another order: blocks of {block}, {shown}"
    return "rows-reordered", words


def _runs(places: list[int]) -> str:
    """`3 to 7, 9`."""
    runs = np.split(np.array(places), np.flatnonzero(np.diff(places) > 1) + 1)
    texts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join(texts[:4]) + (", ..." if len(texts) > 4 else "")


def rows_alike(part: Array) -> tuple[str, str] | None:
    """Rows or columns that all hold the same."""
    for axis in range(part.ndim) if part.ndim > 1 else ():
        first = part.take([0], axis) if part.size else part
        if part.shape[axis] > 1 and part.size and (part == first).all():
            return "rows-alike", f"holds the same in all its {side_of(part, axis)}"
    return None


def _count(array: Array, most: int) -> int | None:
    """How many values an array takes; None where they are more than so many."""
    if len(np.unique(array.reshape(-1)[:_SAMPLE])) > most:
        return None
    count = len(np.unique(array))
    return count if count <= most else None


@np.errstate(all="ignore")
def levels(array: Array) -> str | None:
    """How few values a tensor takes, or each block of it beside its largest."""
    if (count := _count(array, min(_LEVELS, array.size // 4))) is not None:
        return f"{count} values"
    if array.ndim == 2:
        for size, lay in itertools.product((128, 64, 32, 16), (array, array.T)):
            if array.size % size or array.size < 8 * _LEVELS:
                continue
            first = np.ascontiguousarray(lay[: -(-_SAMPLE // lay.shape[1])]).reshape(-1)
            if _beside(first[: first.size // size * size].reshape(-1, size)) is None:
                continue
            if (count := _beside(np.ascontiguousarray(lay).reshape(-1, size))) is not None:
                return f"{count} values in each block of {size}, beside the largest"
    return None


def _beside(blocks: Array) -> int | None:
    """How many values blocks take beside the largest of each; None where these are many."""
    largest = np.abs(blocks).max(1, keepdims=True)
    beside = np.divide(blocks, largest, out=np.zeros_like(blocks), where=largest > 0)
    return _count(beside.round(6), _LEVELS)


def _block(order: list[int]) -> int:
    """The largest size of aligned blocks that stay together."""
    size = len(order)
    for block in (b for b in range(size // 2, 0, -1) if size % b == 0):
        starts = range(0, size, block)
        if all(
            order[s] % block == 0
            and order[s : s + block] == list(range(order[s], order[s] + block))
            for s in starts
        ):
            return block
    return 1
