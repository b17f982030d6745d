"""When nothing explains a difference: where it is, if that is not everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.evidence import Evidence
from parity.tracing.result import Suspect


def place_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """Rows, positions or channels that alone differ, and what they hold."""
    one, other = evidence.target.torch, evidence.target.flax
    if one.dtype != np.float64 or one.ndim < 2:
        return
    finite = one[np.isfinite(one)]
    scale = float(np.sqrt(np.mean(np.square(finite)))) if finite.any() else 1.0
    near = np.abs(one - other) <= evidence.bound * scale
    differs = ~(near | (one == other) | (np.isnan(one) & np.isnan(other)))
    where = where_it_is(differs)
    if not where:
        return
    what = evidence.what
    words = f"{what} differs only in {where}"
    for side, array in (("Flax", other), ("PyTorch", one)):
        if not array[differs].any():
            words += f", where it is zero in {side}"
    yield Suspect("only-in", words, evidence.target.error, None)


def where_it_is(marked: NDArray[Any]) -> str:
    """Along which axes, and where, some values are marked; empty where that is everywhere."""
    said = []
    for axis, size in enumerate(marked.shape):
        others = tuple(a for a in range(marked.ndim) if a != axis)
        places = np.flatnonzero(marked.any(others))
        if 0 < len(places) < size:
            name = "channels" if axis == marked.ndim - 1 else "rows" if axis == 0 else "positions"
            said.append(f"{name} {_spans(places)} of {size}")
    return ", ".join(said)


def _spans(places: NDArray[Any]) -> str:
    """`3 to 7, 9`."""
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    texts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join(texts[:4]) + (", ..." if len(texts) > 4 else "")
