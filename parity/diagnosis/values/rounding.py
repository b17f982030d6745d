"""Hypotheses about a difference that is no more than the rounding of a narrower dtype."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity.diagnosis.evidence import Evidence
from parity.tracing.result import Suspect

# Half a unit in the last place, relative, of the dtypes that are narrower.
_UNITS = {"float32": 2.0**-24, "TF32 or float16": 2.0**-11, "bfloat16": 2.0**-8}
_ROUNDINGS = {"float32": 16.0, "TF32 or float16": 4.0, "bfloat16": 4.0}  # more is not a rounding


def rounding_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """Differences as small, and as patternless, as those of a narrower dtype.

    Which way a sum is rounded depends on its order, so that this error cannot be made to vanish:
    it is told by its size, and by having no part that is proportional to the value.
    """
    one, other = evidence.target.torch, evidence.target.flax
    if one.dtype != np.float64 or not np.isfinite(other).all() or not np.any(one):
        return
    error = evidence.target.error
    unit = min(_UNITS, key=lambda name: abs(np.log(error / _UNITS[name])))
    most = _ROUNDINGS[unit]
    if not 1 / most < error / _UNITS[unit] < most or evidence.dtype == unit:
        return
    difference = other - one
    proportional = abs(float(np.vdot(one, difference))) / float(np.vdot(one, one))
    scale = float(np.sqrt(np.mean(one**2)))
    largest = float(np.max(np.abs(difference) / (np.abs(one) + scale)))
    if proportional < error / 2 and largest < most * _UNITS[unit]:
        what = evidence.what
        words = f"{what} differs as by rounding to {unit}: {error / _UNITS[unit]:.2g} units of it"
        yield Suspect(f"precision-{unit.split()[0]}", words, error, None)
