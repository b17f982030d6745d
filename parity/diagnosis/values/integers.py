"""Hypotheses about integers: ids, positions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnosis.evidence import Evidence
from parity.diagnosis.values.outputs import along
from parity.tracing.result import Suspect

_MOST = 0.8  # of the values, that are off by the same


def integer_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """A constant, a number that is added, another order."""
    if evidence.target.torch.dtype.kind in "iu" and evidence.target.torch.size:
        yield from filter(None, _ways(evidence))


def _ways(e: Evidence) -> Iterator[Suspect | None]:
    one, other = (side.astype(np.int64) for side in (e.target.torch, e.target.flax))
    what, low, high = e.what, int(other.min()), int(other.max())
    steps, counts = np.unique(other - one, return_counts=True)
    step, share = int(steps[counts.argmax()]), counts.max() / one.size
    if low == high:
        yield e.suspect("constant", f"{what} is {low} everywhere in {e.odd}", one * 0 + low, other)
    yield e.suspect("shifted", f"{what} is {step:+d} off everywhere in {e.odd}", one + step, other)
    if step and _MOST < share < 1:  # as where ids begin again at 0
        words = f"{what} is {step:+d} off in {share:.0%} of its values in {e.odd}"
        yield Suspect("shifted", words, e.target.error, None)
    yield from along(e, one, other, what)
    for axis in range(one.ndim):
        words = f"{what} is in the reverse order along its axis {axis} in {e.odd}"
        yield e.suspect("flipped", words, np.flip(one, axis), other)
