"""Hypotheses about a value alone: how would it have to be changed to be the other side's?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import Evidence

Array = NDArray[Any]


def output_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """A factor, a constant, a shift, another order, a rounding."""
    one, other = evidence.target.torch, evidence.target.flax
    if one.dtype != np.float64:
        return
    what = f"what goes into {evidence.stage}" if evidence.stage else "the output"
    found = [
        *_factor(evidence, one, other, what),
        *_constant(evidence, one, other, what),
        *_moved(evidence, one, other, what),
        *_rounded(evidence, one, other, what),
    ]
    yield from (suspect for suspect in found if suspect is not None)


def _factor(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    size = float(np.vdot(one, one))
    if not size:
        return
    factor = float(np.vdot(one, other)) / size
    if not np.any(other):
        yield e.judge("output-zero", f"{what} is zero in Flax", 0.0)
    elif factor:
        known = _known_factor(
            factor, [*one.shape, *(d for p in e.parameters for d in p.torch.shape)]
        )
        yield e.suspect(
            "scale", f"{what} is {factor:.6g}{known} times PyTorch's", one * factor, other
        )


def _known_factor(factor: float, sizes: list[int]) -> str:
    """Where a factor is the root of a size, which."""
    for size in sorted(set(sizes)):
        for power, text in ((0.5, "sqrt({})"), (-0.5, "1/sqrt({})"), (1.0, "{}"), (-1.0, "1/{}")):
            if size > 1 and abs(factor / size**power - 1) < 1e-6:
                return f" = {text.format(size)}"
    return ""


def _constant(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    """The same vector added everywhere: a bias."""
    if one.ndim < 2:
        return
    difference = (other - one).reshape(-1, one.shape[-1]).mean(axis=0)
    biases = {n: a for side in (e.torch_only, e.flax_only) for n, a in side.items()}
    biases |= {p.name: p.torch for p in e.parameters}
    for name, bias in biases.items():
        flat = np.asarray(bias, np.float64).ravel()
        if flat.size != difference.size or not np.any(flat):
            continue
        for sign, words in ((-1, "left out in Flax"), (1, "added in Flax, not in PyTorch")):
            yield e.suspect("bias-dropped", f"{name} looks {words}", one + sign * flat, other)
    yield e.suspect("constant", f"{what} differs by one vector everywhere", one + difference, other)


def _moved(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    if one.ndim >= 3:
        for axis in range(1, one.ndim - 1):
            ahead = [slice(None)] * one.ndim
            behind = list(ahead)
            ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
            if one.shape[axis] > 2:
                for a, b, words in ((ahead, behind, "ahead"), (behind, ahead, "behind")):
                    yield e.suspect(
                        "shifted",
                        f"{what} is one position {words} of PyTorch's",
                        one[tuple(a)],
                        other[tuple(b)],
                    )
    size = one.shape[-1] if one.ndim else 1
    for n in (n for n in range(2, size) if size % n == 0):
        regrouped = one.reshape(*one.shape[:-1], n, size // n).swapaxes(-1, -2).reshape(one.shape)
        words = f"{what} is grouped as {size // n} x {n} in place of {n} x {size // n}"
        yield e.suspect("heads-regrouped", words, regrouped, other)
    if one.ndim >= 2 and one.shape[-1] == one.shape[-2]:
        yield e.suspect("transposed", f"{what} looks transposed", one.swapaxes(-1, -2), other)


def _rounded(e: Evidence, one: Array, other: Array, what: str) -> Iterator[Suspect | None]:
    for name, dtype in (
        ("bfloat16", ml_dtypes.bfloat16),
        ("float16", np.float16),
        ("float32", np.float32),
    ):
        for a, b, side in ((one, other, "Flax"), (other, one, "PyTorch")):
            words = f"{what} is rounded to {name} in {side}"
            yield e.suspect("rounded", words, a.astype(dtype).astype(np.float64), b)


# Half a unit in the last place, relative, of the dtypes that are narrower.
_UNITS = {"float32": 2.0**-24, "TF32 or float16": 2.0**-11, "bfloat16": 2.0**-8}
_ROUNDINGS = 16.0  # an error of more of these units is no rounding


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
    if not 1 / _ROUNDINGS < error / _UNITS[unit] < _ROUNDINGS or evidence.dtype == unit:
        return
    difference = other - one
    proportional = abs(float(np.vdot(one, difference))) / float(np.vdot(one, one))
    scale = float(np.sqrt(np.mean(one**2)))
    largest = float(np.max(np.abs(difference) / (np.abs(one) + scale)))
    if proportional < error / 2 and largest < _ROUNDINGS * _UNITS[unit]:
        what = f"what goes into {evidence.stage}" if evidence.stage else "the output"
        words = f"{what} differs as by rounding to {unit}: {error / _UNITS[unit]:.2g} units of it"
        yield Suspect(f"precision-{unit.split()[0]}", words, error, None)
