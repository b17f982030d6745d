"""Hypotheses about a key/value cache: which slots of a row are written, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.evidence import ROUNDED, Evidence, Value
from parity.tracing.compare.errors import relative_error
from parity.tracing.result import Suspect

Array = NDArray[Any]
_LEAVES = ("key", "value")


def cache_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What is otherwise about the cache that a call hands back: keys, values, positions."""
    before = {_leaf(v.name): v for v in evidence.inputs if _leaf(v.name) in _LEAVES}
    after = {_leaf(v.name): v for v in evidence.outputs if _leaf(v.name) in _LEAVES}
    for name in _LEAVES:
        if name in before and name in after and after[name].error > evidence.bound:
            yield from _slots(evidence, name, before[name], after)
    for value in evidence.outputs:
        if value.torch.dtype.kind == "i" and value.torch.ndim <= 1 and value.error:
            words = f"positions are {_short(value.flax)} in {evidence.odd}, "
            words += f"{_short(value.torch)} in {evidence.usual}"
            yield Suspect("cache-positions", f"after the call {words}", evidence.target.error, None)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _slots(evidence: Evidence, name: str, old: Value, after: dict[str, Value]) -> Iterator[Suspect]:
    """Caches are (B, K, T, H): which of the T slots changed in each row, on each side."""
    new = after[name]
    if old.torch.shape != new.torch.shape or new.torch.ndim != 4:
        return
    mine, theirs = (_written(old.torch, side) for side in (new.torch, new.flax))
    error = new.error
    odd, usual = evidence.odd, evidence.usual
    if not any(mine):  # for the other way round
        return
    if mine == theirs:
        where = new.torch != old.torch
        for what, words, array in _contents(name, old.torch, after):
            if relative_error(array[where], new.flax[where]) <= evidence.bound:
                yield Suspect(what, f"the cached {name} {words} in {odd}", error, 0.0)
                return
        return
    rows = [i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b]
    if all(set(a) <= set(b) for a, b in zip(mine, theirs, strict=True)):
        yield from _spoilt(evidence, name, old.torch, new, rows)
        return
    extra = (old.torch != new.torch).any(axis=(1, 3)) & ~(old.torch != new.flax).any(axis=(1, 3))
    subset = any(theirs) and all(set(b) <= set(a) for a, b in zip(mine, theirs, strict=True))
    if subset and (extra & old.torch.any(axis=(1, 3))).any():
        return  # the other way round: that side spoils what was there
    said = ", ".join(
        f"row {i}: {_short(theirs[i])} in {odd}, {_short(mine[i])} in {usual}" for i in rows[:3]
    )
    words = f"{name}s are written to other slots ({said})"
    if not any(theirs):
        words = f"{name}s are not written at all in {odd}: the cache stays as it was"
    yield Suspect("cache-position", words, error, None)


def _spoilt(
    evidence: Evidence, name: str, old: Array, new: Value, rows: list[int]
) -> Iterator[Suspect]:
    """All that should be written is, and other slots are changed too: filled ones, or free ones."""
    filled = old.any(axis=(1, 3))
    changed = (old != new.flax).any(axis=(1, 3)) & ~(old != new.torch).any(axis=(1, 3))
    said = ", ".join(f"row {i}: {_short(np.flatnonzero(changed[i]))}" for i in rows[:3])
    lost = changed & filled
    if lost.any():
        slots = np.broadcast_to(lost[:, None, :, None], old.shape)
        words = f"{name}s of earlier tokens are changed in {evidence.odd} ({said})"
        for how, array in (("zeroed", np.zeros_like(old)), *_narrowed(old), *_other_rows(old)):
            if relative_error(array[slots], new.flax[slots]) <= evidence.bound:
                words = f"{name}s of earlier tokens are {how} in {evidence.odd} ({said})"
        yield Suspect("cache-spoilt", words, new.error, None)
        return
    words = f"{name}s are written to other slots too in {evidence.odd} ({said}): of padding"
    yield Suspect("cache-padding-written", words, new.error, None)


def _contents(name: str, old: Array, after: dict[str, Value]) -> Iterator[tuple[str, str, Array]]:
    """What the cached values may be instead."""
    right = after[name].torch
    for other in _LEAVES:
        if other != name and other in after:
            yield "cache-swapped", f"is the {other}", after[other].torch
    for how, array in _narrowed(right):
        yield "cache-rounded", f"is {how}", array
    for how, array in _other_rows(right):
        yield "cache-rows", f"is {how}", array
    for step in (1, -1):
        moved = np.roll(right, step, axis=2)
        yield "cache-position", f"stands {step:+d} slot from where it should", moved
    if right.shape[1] > 1:
        yield "cache-heads", "has its heads in the reverse order", right[:, ::-1]
        yield "cache-heads", "has the first head in all heads", right[:, :1] + 0 * right
    yield "cache-added", "is added to what was there", right + old
    new = old != right
    reverse = np.array(right)
    for row, slots in zip(reverse, new.any(axis=(1, 3)), strict=True):
        row[:, slots] = row[:, slots][:, ::-1]
    yield "cache-reversed", "is written in the reverse order", reverse
    wrong = after[name].flax[new]
    factor = float(np.vdot(right[new], wrong) / np.vdot(right[new], right[new]))
    yield "cache-scaled", f"is {factor:.6g} times what it should be", right * factor


def _narrowed(array: Array) -> Iterator[tuple[str, Array]]:
    for text, dtype in ROUNDED.items():
        yield f"rounded to {text}", array.astype(dtype).astype(np.float64)
    for axis, per in ((None, "the tensor"), (-1, "a head and token"), ((-2, -1), "a head")):
        largest = np.abs(array).max(axis=axis, keepdims=axis is not None)
        step = np.where(largest == 0, 1, largest) / 127
        yield f"quantised to 8 bits, one scale for {per}", np.rint(array / step) * step


def _other_rows(array: Array) -> Iterator[tuple[str, Array]]:
    """Caches of another row of the batch, as after beam search or a wrong reordering."""
    for step in range(1, len(array)):
        yield "of another row of the batch", np.roll(array, step, axis=0)
    if len(array) > 1:
        yield "that of the first row in all rows", np.broadcast_to(array[:1], array.shape)


def _written(old: Array, new: Array) -> list[list[int]]:
    changed = (old != new).any(axis=(1, 3))
    return [np.flatnonzero(row).tolist() for row in changed]


def _short(numbers: Any) -> str:
    values = np.ravel(np.asarray(numbers)).tolist()
    return str(values if len(values) <= 6 else [*values[:5], "..."]).replace("'", "")
