"""Hypotheses about the tables of rotary embedding that a model hands to its layers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.tracing.errors import relative_error
from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import ROUNDED, Evidence, Value

Array = NDArray[Any]
_FIT = 1e-6
_ROUNDED_FIT = 5e-3  # frequencies that differ by less may be the same ones, rounded
_NARROW = 0.2  # what cos^2 + sin^2 may be off by where both are rounded
_READ = 1e-9  # what reading frequencies off the tables costs


def table_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What differs about the angles."""
    target = evidence.target
    stage = next((part for part in evidence.parts if part.name == evidence.stage), None)
    if stage is None or target.torch.ndim < 2 or np.abs(target.torch).max(initial=0) > 1 + _FIT:
        return
    tables = [v for v in stage.inputs if v.torch.shape == target.torch.shape]
    if len(tables) == 2 and any(map(_are_angles, *((t.torch, t.flax) for t in tables))):
        yield from _angles(evidence, *tables)  # cos comes before sin wherever both are passed


def _are_angles(cos: Array, sin: Array) -> bool:
    return bool(np.abs(np.square(cos) + np.square(sin) - 1).max() < _NARROW)


def _angles(evidence: Evidence, cos: Value, sin: Value) -> Iterator[Suspect]:
    """Compare the tables by the angles that they are made of."""
    odd = evidence.odd
    sides = [(cos.torch, sin.torch), (cos.flax, sin.flax)]
    one, other = (np.arctan2(s, c) for c, s in sides)
    for step, words in ((1, "ahead"), (-1, "behind")):
        a = one[..., 1:, :] if step > 0 else one[..., :-1, :]
        b = other[..., :-1, :] if step > 0 else other[..., 1:, :]
        sentence = f"positions are one too {'high' if step > 0 else 'low'} in {odd}"
        if suspect := _same(evidence, f"position-{words}", sentence, a, b):
            yield suspect
            return
    for name, words, angles in (
        ("rope-backwards", "angles have opposite signs on the two sides", -one),
        ("rope-swapped", "cos and sin are swapped on one side", math.pi / 2 - one),
        ("rope-reversed", "frequencies stand in opposite orders on the two sides", one[..., ::-1]),
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
    yield from _frequencies(evidence, one, other, sides)


def _same(evidence: Evidence, name: str, words: str, one: Array, other: Array) -> Suspect | None:
    tables = [np.concatenate((np.cos(a), np.sin(a))) for a in (one, other)]
    return evidence.suspect(name, words, *tables)


def _frequencies(
    evidence: Evidence, one: Array, other: Array, sides: list[tuple[Array, Array]]
) -> Iterator[Suspect]:
    """Angles per position: theta ** (-j / half), or that divided."""
    if one.shape[-2] < 2:
        return
    odd, usual = evidence.odd, evidence.usual
    steps = [(a[..., 1, :] - a[..., 0, :]).reshape(-1, a.shape[-1])[0] for a in (one, other)]
    mine, theirs = (np.mod(step, 2 * math.pi) for step in steps)
    if (mine <= 0).any():
        return
    if not theirs.any():
        words = f"angles are the same at all positions in {odd}"
        if suspect := evidence.judge("rope-constant", words, _of_frequencies(theirs, sides[1])):
            yield suspect
        return
    still = theirs <= 0
    if still.any():
        alike = np.allclose(theirs[~still], mine[~still], rtol=_FIT)
        words = f"{int(still.sum())} of {len(still)} frequencies are 0 in {odd}: a partial rotation"
        after = _of_frequencies(theirs, sides[1])
        if alike and (suspect := evidence.judge("rope-partial", words, after)):
            yield suspect
        return
    ratio = theirs / mine
    after = _of_frequencies(theirs, sides[1])
    if np.allclose(ratio, 1, rtol=_FIT):
        yield from _offsets(evidence, mine, one, sides[1])
    if np.allclose(ratio, 1, rtol=_ROUNDED_FIT):
        yield from _rounded(evidence, mine, sides)
        return
    if np.ptp(ratio) < _FIT * abs(ratio[0]):
        words = f"angles are {ratio[0]:.6g} times {usual}'s in {odd}: positions scaled"
        if suspect := evidence.judge("rope-scaled", words, after):
            yield suspect
        return
    (theta, first), (other_theta, other_first) = (_series(f) for f in (mine, theirs))
    if theta and other_theta:
        words = f"rope theta is {other_theta:.6g} in {odd}, {theta:.6g} in {usual}"
        if abs(other_first - first) > _FIT:
            words += f", and the first frequency {other_first:.6g}, not {first:.6g}"
        name = "rope-theta"
    else:
        words = f"{int((abs(ratio - 1) > _FIT).sum())} of {len(ratio)} rotary frequencies differ"
        # Scalings keep the high frequencies and lower the rest.
        one_way = bool((ratio <= 1 + _FIT).all() or (ratio >= 1 - _FIT).all())
        scaled = [min(r, 1 / r) for r in ratio] if one_way else []
        if scaled and all(a >= b - _FIT for a, b in itertools.pairwise(scaled)):
            words += ": a scaling (llama3, yarn) that one side leaves out"
        name = "rope-frequencies"
    if suspect := evidence.judge(name, words, after):
        yield suspect


def _rounded(
    evidence: Evidence, frequencies: Array, sides: list[tuple[Array, Array]]
) -> Iterator[Suspect]:
    """The same frequencies, or positions, or angles, in a narrower dtype on one side."""
    (cos, sin), (other_cos, other_sin) = sides
    first = np.arctan2(sin, cos)[..., :1, :]
    places = np.arange(cos.shape[-2])[:, None]
    slowest = int(frequencies.argmin())
    start = np.rint(first[..., slowest : slowest + 1] / frequencies[slowest])
    for name, dtype in ROUNDED.items():

        def narrow(array: Array, dtype: Any = dtype) -> Array:
            return array.astype(dtype).astype(np.float64)

        for what, angles in (
            ("frequencies", (start + places) * narrow(frequencies)),
            ("angles", narrow((start + places) * frequencies)),
            ("positions", narrow(start + places) * frequencies),
            ("frequencies and angles", narrow(narrow(start + places) * narrow(frequencies))),
        ):
            both = [(np.cos(angles), other_cos), (np.sin(angles), other_sin)]
            after = max(min(relative_error(a, b), relative_error(narrow(a), b)) for a, b in both)
            words = f"rotary {what} are rounded to {name} in {evidence.odd}"
            # Frequencies are read off the tables here, with their rounding.
            if after <= max(evidence.bound, _READ) < evidence.target.error:
                yield Suspect("rope-rounded", words, evidence.target.error, after)
                return


def _offsets(
    evidence: Evidence, frequencies: Array, one: Array, side: tuple[Array, Array]
) -> Iterator[Suspect]:
    """The same frequencies: each row's positions differ by a number of its own."""
    slowest = int(frequencies.argmin())
    other = np.arctan2(side[1], side[0])
    turned = np.mod(other[..., 0, slowest] - one[..., 0, slowest] + math.pi, 2 * math.pi) - math.pi
    steps = np.rint(turned / frequencies[slowest])
    moved = one + steps[..., None, None] * frequencies
    after = max(relative_error(np.cos(moved), side[0]), relative_error(np.sin(moved), side[1]))
    rows = ", ".join(f"{step:+.0f}" for step in np.ravel(steps)[:6])
    words = f"positions of the rows are off by {rows} in {evidence.odd}"
    if suspect := evidence.judge("positions", words, after):
        yield suspect
        return
    # Or each token's: positions that do not restart, or stand still.
    turned = other[..., slowest] - one[..., slowest]
    steps = np.rint(turned / frequencies[slowest])
    moved = one + steps[..., None] * frequencies
    after = max(relative_error(np.cos(moved), side[0]), relative_error(np.sin(moved), side[1]))
    places = [np.rint(a[..., slowest] / frequencies[slowest]) for a in (other, one)]
    row = int(np.argwhere(places[0] != places[1])[0, 0]) if np.any(places[0] != places[1]) else 0
    one_row, other_row = (np.atleast_2d(p)[row] for p in places)
    start = max(int(np.argmax(one_row != other_row)) - 1, 0)
    shown = [" ".join(f"{p:.0f}" for p in r[start : start + 6]) for r in (one_row, other_row)]
    words = f"positions of row {row} from token {start} on are {shown[0]} ... in {evidence.odd}, "
    words += f"{shown[1]} ... in {evidence.usual}: they begin or restart elsewhere"
    if suspect := evidence.judge("positions", words, after):
        yield suspect


def _of_frequencies(frequencies: Array, side: tuple[Array, Array]) -> float:
    """How well one set of frequencies explains a side's whole tables."""
    cos, sin = side
    first = np.arctan2(sin, cos)[..., :1, :]
    angles = first + np.arange(cos.shape[-2])[:, None] * frequencies
    return max(relative_error(np.cos(angles), cos), relative_error(np.sin(angles), sin))


def _series(frequencies: Array) -> tuple[float | None, float]:
    """The base of a geometric series, or None where it is none, and where it begins."""
    if len(frequencies) < 2:
        return None, float(frequencies[0])
    logs = np.log(frequencies)
    steps = np.diff(logs)
    if np.ptp(steps) > 1e-6:
        return None, float(frequencies[0])
    return float(np.exp(-steps.mean() * len(frequencies))), float(frequencies[0])
