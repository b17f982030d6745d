"""Hypotheses about the frequencies that rotary tables are made of: their base, their scaling."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.attention.rotary_frequencies import (
    COARSE,
    NOISE,
    Rotary,
    differences,
    hint,
    read,
    short,
)
from parity.diagnosis.evidence import ROUNDED, Evidence
from parity.tracing.compare.errors import relative_error
from parity.tracing.result import Suspect

Array = NDArray[Any]
Tables = tuple[Array, Array]
_FIT = 1e-6
_ROUNDED_FIT = 5e-3  # frequencies that differ by less may be the same ones, rounded
_ENDS = "original_max_position_embeddings, low_freq_factor or high_freq_factor"
_DIGITS = 4  # after the point, to which steps are the same
_READ = 1e-9  # what reading frequencies off the tables costs


def frequency_suspects(
    evidence: Evidence, one: Array, other: Array, sides: list[tuple[Array, Array]]
) -> Iterator[Suspect]:
    """What differs about the angles per position: theta ** (-j / half), or that divided.

    Args:
        evidence: the culprit.
        one: the angles on the usual side, (..., S, H/2) or (..., S, H).
        other: those on the odd one.
        sides: cos and sin of both.
    """
    if one.shape[-2] < 2:
        return
    odd, usual = evidence.odd, evidence.usual
    mine, theirs = _steps(one, other)
    if (mine <= 0).any():
        return
    after = _of_frequencies(theirs, sides[1], _places(one, mine))
    if not theirs.any():
        words = f"angles are the same at all positions in {odd}"
        if suspect := evidence.judge("rope-constant", words, after):
            yield suspect
        return
    still = theirs <= 0
    if still.any():
        alike = np.allclose(theirs[~still], mine[~still], rtol=_FIT)
        words = f"{int(still.sum())} of {len(still)} frequencies are 0 in {odd}: a partial rotation"
        if alike and (suspect := evidence.judge("rope-partial", words, after)):
            yield suspect
        return
    ratio = theirs / mine
    if np.allclose(ratio, 1, rtol=_FIT):
        yield from _offsets(evidence, mine, one, sides[1])
    if np.allclose(ratio, 1, rtol=_ROUNDED_FIT):
        rounded = list(_rounded(evidence, mine, sides))
        yield from rounded
        if rounded:
            return
    for frequencies, angles, side, name in (
        (mine, one, sides[1], odd),
        (theirs, other, sides[0], usual),
    ):
        if suspect := _inverted(evidence, angles, frequencies, side, name):
            yield suspect
            return
    yield from _of_values(evidence, mine, theirs, sides, after)


def _of_values(
    evidence: Evidence, mine: Array, theirs: Array, sides: list[Tables], after: float
) -> Iterator[Suspect]:
    """The values of a config that make the frequencies of each side."""
    noise = NOISE[evidence.dtype]
    odd, usual, ratio = evidence.odd, evidence.usual, theirs / mine
    if np.ptp(ratio) < noise * abs(ratio[0]) and abs(ratio[0] - 1) > noise:
        words = f"angles are {ratio[0]:.6g} times {usual}'s in {odd}: positions scaled"
        values = [_factor(f, noise) for f in (theirs, mine)]
        if all(values):
            both = list(zip(values, (odd, usual), strict=True))
            said = [f"{short(v)} in {s}" for v, s in both if v != 1]
            said += [f"left out in {s}" for v, s in both if v == 1]
            words += f" (linear factor {', '.join(said)})"
        name = "rope-scaled"
    else:
        found = read(_of_channels(mine), noise), read(_of_channels(theirs), noise)
        name, words = _described(found, ratio, noise, usual, odd)
    sizes = [float(np.hypot(*side).mean()) for side in sides]
    if abs(sizes[1] / sizes[0] - 1) > noise:
        words += "; " if words else ""
        words += f"cos and sin are {short(sizes[1])} in size in {odd}, {short(sizes[0])} in {usual}"
        words += " (yarn's attention factor)"
    if words and (suspect := evidence.judge(name, words, after)):
        yield suspect


def _steps(one: Array, other: Array) -> list[Array]:
    """From one position to the next, on both sides: the step that most are, else the first one.

    Padding stands still, and a document that begins goes back.
    """
    moved = [np.diff(a, axis=-2).reshape(-1, a.shape[-1]) for a in (one, other)]
    steps = [np.mod(m, 2 * math.pi) for m in moved]
    going = np.flatnonzero(np.any(moved[0] != 0, axis=-1))
    if not going.size:
        return [step[0] for step in steps]
    kinds = np.round(steps[0][going], _DIGITS)
    _, firsts, counts = np.unique(kinds, axis=0, return_index=True, return_counts=True)
    place = going[firsts[counts.argmax()] if 2 * counts.max() > going.size else 0]
    return [step[place] for step in steps]


def _places(angles: Array, frequencies: Array) -> Array:
    """How many positions each token is behind the first one of its row, by the slowest channel."""
    slowest = int(frequencies.argmin())
    turned = angles[..., slowest] - angles[..., :1, slowest]
    return np.rint(turned / frequencies[slowest])


def _of_channels(frequencies: Array) -> Array:
    """Each frequency once, where a table has it for both channels of a pair."""
    half = len(frequencies) // 2
    if len(frequencies) % 2 == 0 and half > 1:
        for part, same in (
            (frequencies[:half], frequencies[half:]),
            (frequencies[::2], frequencies[1::2]),
        ):
            if np.allclose(part, same, rtol=_FIT):
                return part
    return frequencies


def _factor(frequencies: Array, noise: float) -> float:
    """What all frequencies of a side are divided by; 0 where that cannot be said."""
    found = read(_of_channels(frequencies), noise)
    if found is None or found.kind not in ("", "linear"):
        return 0.0
    return found.values.get("factor", 1.0)


def _described(
    found: tuple[Rotary | None, Rotary | None], ratio: Array, noise: float, usual: str, odd: str
) -> tuple[str, str]:
    """The name of what is wrong with the frequencies, and the values that each side has."""
    mine, theirs = found
    differing = int((abs(ratio - 1) > _FIT).sum())
    words = f"{differing} of {len(ratio)} rotary frequencies differ"
    if (mine is None or theirs is None) and noise > COARSE:
        return "rope-frequencies", f"{words}: their values show in float64 only"
    if mine is None or theirs is None:
        known = [
            f"{side}'s are those of theta {short(f.theta)}, scaling {f.scaling()}"
            for side, f in ((usual, mine), (odd, theirs))
            if f is not None
        ]
        known += [f"{s}'s follow no known rule" for s, f in ((odd, theirs), (usual, mine)) if not f]
        return "rope-frequencies", f"{words}: {'; '.join(known)}"
    said = differences(mine, theirs, usual, odd)
    if not said and mine.kind and np.abs(ratio - 1).max() > COARSE:
        said = [f"the {theirs.kind} scaling begins or ends elsewhere ({_ENDS})"]
    if not said:
        return "rope-frequencies", ""
    plain = not mine.kind and not theirs.kind
    text = "; ".join(said) + (hint(mine, theirs, len(_of_channels(ratio))) if plain else "")
    if said[0].startswith("rope theta"):
        return "rope-theta", text
    return "rope-frequencies", f"{words}: {text}"


def _inverted(
    evidence: Evidence, one: Array, frequencies: Array, side: Tables, name: str
) -> Suspect | None:
    """Frequencies of theta ** (j / n), without the minus or the division."""
    mine = read(_of_channels(frequencies), NOISE[evidence.dtype])
    if mine is None or mine.kind or mine.theta <= 1:
        return None
    count = len(_of_channels(frequencies))
    places = np.rint(-np.log(frequencies) / math.log(mine.theta) * count)
    slowest = int(frequencies.argmin())
    first = np.rint(one[..., :1, slowest] / frequencies[slowest])
    positions = (first + np.arange(one.shape[-2]))[..., None]
    angles = positions * mine.theta ** (places / count)
    after = max(relative_error(np.cos(angles), side[0]), relative_error(np.sin(angles), side[1]))
    words = f"rotary frequencies are theta ** (2j/H) in {name}, not theta ** (-2j/H): a minus or a "
    words += "division is missing"
    if after <= max(evidence.bound, _READ) < evidence.target.error:
        return Suspect("rope-inverse", words, evidence.target.error, after)
    return None


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


def _of_frequencies(frequencies: Array, side: Tables, places: Array) -> float:
    """How well one set of frequencies explains a side's whole tables.

    Args:
        frequencies: in radians per position.
        side: its cos and sin.
        places: as the usual side has them; where they cannot be read off, each is one further.
    """
    cos, sin = side
    size = np.hypot(cos, sin).mean()
    first = np.arctan2(sin, cos)[..., :1, :]
    errors = []
    for place in (np.arange(cos.shape[-2]), places):
        angles = first + place[..., None] * frequencies
        errors += [
            max(relative_error(size * f(angles), t) for f, t in ((np.cos, cos), (np.sin, sin)))
        ]
    return min(errors)
