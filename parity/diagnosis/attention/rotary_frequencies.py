"""What a set of rotary frequencies is made of: a base, a factor, a scaling.

n frequencies of a plain table are theta ** (-j / n). `linear` divides all of them by a factor,
`llama3` and `yarn` the low ones alone, with a blend between.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# What the logarithms of frequencies read off tables of this dtype may be off by.
NOISE = {"float64": 1e-6, "float32": 5e-6, "float16": 5e-3, "bfloat16": 3e-2}
_EXACT = 1e-9  # of a base in float64
_BLEND = 100.0  # times as blurred is what lies behind a blend
_EITHER = "llama3 or yarn"  # nothing lies between what is kept and what is divided
COARSE = 1e-4  # noise of a narrow dtype
_DIGITS = 12
_USUAL = (1e4, 1e5, 5e5, 1e6)  # bases that models have
_NTK = 1.2  # the least factor that a scaling has


@dataclasses.dataclass(frozen=True)
class Rotary:
    """The values that a config would have for these frequencies.

    Attributes:
        theta: the base.
        kind: the scaling: empty, `linear`, `llama3` or `yarn`.
        values: of the scaling, by the name that a config has for them. What a blend of one channel
            or none does not show is left out. Of llama3's low and high factors and its original
            length the frequencies show two ratios: the low factor is then the usual one, 1.
        blur: what the base may be off by, as a part of it.
    """

    theta: float
    kind: str = ""
    values: dict[str, float] = dataclasses.field(default_factory=dict)
    blur: float = 0.0

    def scaling(self) -> str:
        """`llama3 (factor 8, low_freq_factor 1, ...)`."""
        listed = ", ".join(f"{name} {short(value)}" for name, value in self.values.items())
        return f"{self.kind} ({listed})" if self.kind else "none"


def read(frequencies: Array, noise: float) -> Rotary | None:
    """What these frequencies are made of; None where they follow no known rule.

    Args:
        frequencies: in radians per position, (n,), above 0, in the order of channels.
        noise: what their logarithms may be off by. Where that is much, as of bfloat16, a scaling
            of a part of the frequencies cannot be told.
    """
    count = len(frequencies)
    if count < 2:
        return None
    logs = np.log(frequencies)
    steps = -np.diff(logs)
    if np.ptp(steps) <= 2 * noise:
        blur = max(_EXACT, 2 * float(np.ptp(steps)))
        theta = _rounded(math.exp(float(steps.mean()) * count), blur)
        if abs(logs[0]) <= max(blur, 2 * noise if noise > COARSE else 0):
            return Rotary(theta, blur=blur)
        values = {"factor": _rounded(float(1 / frequencies[0]), blur)}
        return Rotary(theta, "linear", values, blur)
    for slope, spread in _slopes(steps, noise) if noise <= COARSE else ():
        base = np.exp(-slope * np.arange(count))
        blur = max(_EXACT, spread * count)
        plain = Rotary(_rounded(math.exp(slope * count), blur), blur=blur)
        if found := _scaled(plain, base, base / frequencies, noise):
            return found
    return None


def _slopes(steps: Array, noise: float) -> list[tuple[float, float]]:
    """Slopes of the base that the ends of a scaled table still have, the longer end first.

    The high frequencies are kept and the low ones divided by one factor; either shows the base.
    """
    found = []
    for ordered in (steps, steps[::-1]):
        alike = np.abs(ordered - ordered[0]) <= 2 * noise
        run = len(alike) if alike.all() else int(alike.argmin())
        spread = float(np.ptp(ordered[:run])) if run > 2 else 2 * noise  # fewer do not show it
        found.append((run, float(ordered[:run].mean()), spread))
    return [(slope, spread) for _, slope, spread in sorted(found, reverse=True)]


def _scaled(plain: Rotary, base: Array, ratio: Array, noise: float) -> Rotary | None:
    """A scaling that divides by 1 at one end and by its factor at the other."""
    wide, fine = 100 * noise, _BLEND * plain.blur

    def of(kind: str, **values: float) -> Rotary:
        rounded = {"factor": factor} | values
        rounded = {name: _rounded(value, fine) for name, value in rounded.items()}
        return dataclasses.replace(plain, kind=kind, values=rounded)

    factor = float(ratio[-1])
    if factor <= 1 + wide or (np.diff(ratio) < -wide * factor).any() or ratio[0] < 1 - wide:
        return None
    kept = (1 / ratio - 1 / factor) / (1 - 1 / factor)
    inside = (kept > wide) & (kept < 1 - wide)
    count = int(inside.sum())
    if not count:
        return of(_EITHER)
    places = np.arange(len(base), dtype=np.float64)
    fits = {}
    for kind, along in {"llama3": base, "yarn": -places}.items():
        if count > 1:
            slope, offset = (float(n) for n in np.polyfit(along[inside], kept[inside], 1))
        elif kind == "llama3":  # the usual high factor is 4 times the low one
            offset = -1 / 3
            slope = float((kept[inside] - offset)[0] / along[inside][0])
        else:
            continue
        wrong = float(np.abs(np.clip(slope * along + offset, 0, 1) - kept).max())
        if slope > 0 and wrong <= wide:
            fits[kind] = (wrong, slope, offset)
    if not fits:
        return of(_EITHER) if count == 1 else None
    kind = min(fits, key=lambda k: fits[k][0]) if count > 2 else next(iter(fits))
    _, slope, offset = fits[kind]
    if kind == "yarn":  # a line over channels, from 1 to 0
        return of(kind, first=(offset - 1) / slope, last=offset / slope)
    if count == 1 or offset >= -wide:
        return of(kind)
    return of(kind, **_named(1 - 1 / offset, -2 * math.pi * slope / offset, fine))


def _named(high: float, original: float, fine: float) -> dict[str, float]:
    """The low and the high factor and the original length, given those of a low factor of 1."""
    for low in (1.0, 2.0, 4.0, 8.0, 0.5, 0.25):  # with which the length is one that people write
        length = original * low
        if abs(length / max(round(length / 64) * 64, 64) - 1) < fine:
            break
    else:
        low, length = 1.0, original
    names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return dict(zip(names, (low, high * low, length), strict=True))


def differences(mine: Rotary, theirs: Rotary, usual: str, odd: str) -> list[str]:
    """What of the two is not the same, and the value that each side has.

    Args:
        mine: of the usual side.
        theirs: of the odd one.
        usual: what that side is called.
        odd: the same of the other.
    """
    said = []
    blur = max(mine.blur, theirs.blur)
    if _differ(mine.theta, theirs.theta, blur):
        a, b = apart(theirs.theta, mine.theta)
        said.append(f"rope theta is {a} in {odd}, {b} in {usual}")
    kinds = {mine.kind, theirs.kind}
    if len(kinds) == 1 or (_EITHER in kinds and kinds & {"llama3", "yarn"}):
        for name in [name for name in mine.values if name in theirs.values]:
            if _differ(mine.values[name], theirs.values[name], _BLEND * blur):
                a, b = apart(theirs.values[name], mine.values[name])
                said.append(f"the {theirs.kind} scaling's {name} is {a} in {odd}, {b} in {usual}")
    elif mine.kind and theirs.kind:
        words = f"{theirs.scaling()} in {odd}, {mine.scaling()} in {usual}"
        said.append(f"the rope scaling is {words}")
    else:
        scaled, plain = (mine, odd) if mine.kind else (theirs, usual)
        said.append(f"a rope scaling, {scaled.scaling()}, that {plain} leaves out")
    return said


def hint(mine: Rotary, theirs: Rotary, count: int) -> str:
    """How another base comes about where nobody set one; empty where it does not look so.

    Args:
        mine: of the usual side, a plain table.
        theirs: of the odd one, a plain table.
        count: how many frequencies there are, half of the head's channels; at least 2.
    """
    if min(mine.theta, theirs.theta) <= 1:
        return ""
    size, near = 2 * count, _EXACT * 1e3
    both = sorted((mine, theirs), key=lambda rotary: rotary.theta not in _USUAL)
    ways = [(both[0], both[1]), (both[1], both[0])]
    for known, other in ways:
        divisor = size * math.log(known.theta) / math.log(other.theta)
        whole = round(divisor)
        likely = {size // 4, size // 2, size * 2, size * 4} - {size}
        if not _is_short(other.theta):
            likely |= {whole} - {size}
        if whole in likely and abs(divisor - whole) < near * size:
            words = f"{short(known.theta)} with exponents 2j/{whole} in place of 2j/{size}"
            return f" (the same as {words}: another head_dim)"
    for known, other in ways:
        factor = (other.theta / known.theta) ** ((size - 2) / size)
        if (
            factor > _NTK
            and not _is_short(other.theta)
            and abs(4 * factor - round(4 * factor)) < near
        ):
            return f" (the same as {short(known.theta)} scaled by {factor:.4g}, the NTK way)"
    return ""


def _is_short(theta: float) -> bool:
    """Whether it is one that people write."""
    return float(f"{theta:.3g}") == theta


def short(value: float) -> str:
    """A number as people write it."""
    return f"{value:.6g}" if value < 1e6 or value != round(value) else f"{value:.{_DIGITS}g}"


def apart(one: float, other: float) -> tuple[str, str]:
    """Two numbers with as many digits as tell them apart."""
    texts = short(one), short(other)
    for digits in range(7, _DIGITS + 5):
        if texts[0] != texts[1]:
            break
        texts = f"{one:.{digits}g}", f"{other:.{digits}g}"
    return texts


def _differ(one: float, other: float, blur: float) -> bool:
    return abs(one - other) > blur * max(abs(one), abs(other))


def _rounded(value: float, blur: float) -> float:
    """The shortest number that is as good: people write short ones."""
    for digits in range(1, _DIGITS):
        written = float(f"{value:.{digits}g}")
        if not _differ(written, value, blur / 2):
            return written
    return value
