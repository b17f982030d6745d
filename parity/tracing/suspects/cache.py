"""Hypotheses about a key/value cache: which slots of a row are written, and with what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from parity.tracing.errors import relative_error
from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import Evidence, Value

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
            words = f"positions are {_short(value.flax)} in Flax, {_short(value.torch)} in PyTorch"
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
    if mine == theirs:
        for what, words, array in _contents(name, after):
            where = new.torch != old.torch
            if relative_error(array[where], new.flax[where]) <= evidence.bound:
                yield Suspect(what, f"the cached {name} {words} in Flax", error, 0.0)
        return
    lost = any(set(a) - set(b) for a, b in zip(mine, theirs, strict=True))
    kind = "cache-position" if lost else "cache-padding-written"
    rows = [i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b]
    said = ", ".join(
        f"row {i}: {_short(theirs[i])} in Flax, {_short(mine[i])} in PyTorch" for i in rows[:3]
    )
    yield Suspect(kind, f"{name}s are written to other slots ({said})", error, None)


def _contents(name: str, after: dict[str, Value]) -> Iterator[tuple[str, str, Array]]:
    """What the cached values may be instead."""
    for other in _LEAVES:
        if other != name and other in after:
            yield "cache-swapped", f"is the {other}", after[other].torch
    for text, dtype in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
        rounded = after[name].torch.astype(dtype).astype(np.float64)
        yield "cache-rounded", f"is rounded to {text}", rounded


def _written(old: Array, new: Array) -> list[list[int]]:
    changed = (old != new).any(axis=(1, 3))
    return [np.flatnonzero(row).tolist() for row in changed]


def _short(numbers: Any) -> str:
    values = np.ravel(np.asarray(numbers)).tolist()
    return str(values if len(values) <= 6 else [*values[:5], "..."]).replace("'", "")
