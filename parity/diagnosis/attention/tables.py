"""Hypotheses about the tables of rotary embedding that a model hands to its layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.attention.table_frequencies import frequency_suspects
from parity.diagnosis.evidence import ROUNDED, Evidence, Value
from parity.tracing.result import Suspect

Array = NDArray[Any]
_AMPLITUDE = 2.0  # tables whose attention is scaled (yarn) are a little above 1
_FIT = 1e-6
_NARROW = 0.2  # what cos^2 + sin^2 may be off by where both are rounded


def table_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What differs about the angles."""
    target = evidence.target
    values = evidence.outputs
    if evidence.stage:
        values = [v for part in evidence.parts if part.name == evidence.stage for v in part.inputs]
    if target.torch.ndim < 2 or np.abs(target.torch).max(initial=0) > _AMPLITUDE:
        return
    tables = [v for v in values if v.torch.shape == target.torch.shape]
    if len(tables) == 2 and any(map(_are_angles, *((t.torch, t.flax) for t in tables))):
        yield from _angles(evidence, *tables)  # cos comes before sin wherever both are passed


def _are_angles(cos: Array, sin: Array) -> bool:
    return bool(np.abs(np.square(cos) + np.square(sin) - 1).max() < _NARROW)


def _angles(evidence: Evidence, cos: Value, sin: Value) -> Iterator[Suspect]:
    """Compare the tables by the angles that they are made of."""
    odd = evidence.odd
    sides = [(cos.torch, sin.torch), (cos.flax, sin.flax)]
    one, other = (np.arctan2(s, c) for c, s in sides)
    several = one.shape[-2] > 1  # one position alone is any other's
    for step, words in ((1, "ahead"), (-1, "behind")) if several else ():
        a = one[..., 1:, :] if step > 0 else one[..., :-1, :]
        b = other[..., :-1, :] if step > 0 else other[..., 1:, :]
        sentence = f"positions are one too {'high' if step > 0 else 'low'} in {odd}"
        if suspect := _same(evidence, f"position-{words}", sentence, a, b):
            yield suspect
            return
    opposite = f"frequencies stand in opposite orders on the two sides{_order(one, evidence.usual)}"
    for name, words, angles in (
        ("rope-backwards", "angles have opposite signs on the two sides", -one),
        ("rope-swapped", "cos and sin are swapped on one side", math.pi / 2 - one),
        ("rope-reversed", opposite, one[..., ::-1]),
    ):
        if suspect := _same(evidence, name, words, angles, other):
            yield suspect
            return
    for name, dtype in ROUNDED.items():
        rounded = cos.torch.astype(dtype).astype(np.float64)
        words = f"tables are rounded to {name} in {odd}"
        if suspect := evidence.suspect("rounded", words, rounded, cos.flax):
            yield suspect
            return
    yield from frequency_suspects(evidence, one, other, sides)


def _order(angles: Array, side: str) -> str:
    """Which way a side's frequencies run."""
    step = angles[..., 1, :] - angles[..., 0, :] if angles.shape[-2] > 1 else angles[..., 0, :]
    first, last = np.abs(step.reshape(-1, step.shape[-1])[0][[0, -1]])
    return f": from {'low to high' if first < last else 'high to low'} in {side}"


def _same(evidence: Evidence, name: str, words: str, one: Array, other: Array) -> Suspect | None:
    tables = [np.concatenate((np.cos(a), np.sin(a))) for a in (one, other)]
    return evidence.suspect(name, words, *tables)
