"""When nothing explains a difference: where it is, if that is not everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import Evidence


def place_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """Rows, positions or channels that alone differ, and what they hold."""
    one, other = evidence.target.torch, evidence.target.flax
    if one.dtype != np.float64 or one.ndim < 2:
        return
    scale = float(np.sqrt(np.mean(np.square(one)))) or 1.0
    differs = np.abs(one - other) > evidence.bound * scale
    said = []
    for axis, size in enumerate(one.shape):
        others = tuple(a for a in range(one.ndim) if a != axis)
        places = np.flatnonzero(differs.any(others))
        if 0 < len(places) < size:
            name = "channels" if axis == one.ndim - 1 else "rows" if axis == 0 else "positions"
            said.append(f"{name} {_spans(places)} of {size}")
    if not said:
        return
    what = f"what goes into {evidence.stage}" if evidence.stage else "the output"
    words = f"{what} differs only in {', '.join(said)}"
    for side, array in (("Flax", other), ("PyTorch", one)):
        if not array[differs].any():
            words += f", where it is zero in {side}"
    yield Suspect("only-in", words, evidence.target.error, None)


def _spans(places: np.ndarray) -> str:
    """`3 to 7, 9`."""
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    texts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join(texts[:4]) + (", ..." if len(texts) > 4 else "")
