"""Hypotheses about what a model hands to its layers: rotary tables and masks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.tracing.errors import relative_error
from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import Evidence, Value

Array = NDArray[Any]
_FIT = 1e-6


def table_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What differs about a mask, or about the angles of rotary embedding."""
    target = evidence.target
    if target.torch.dtype == bool:
        yield from _masks(evidence, target)
        return
    stage = next((part for part in evidence.parts if part.name == evidence.stage), None)
    if stage is None or target.torch.ndim < 2 or np.abs(target.torch).max(initial=0) > 1 + _FIT:
        return
    tables = [v for v in stage.inputs if v.torch.shape == target.torch.shape]
    if len(tables) == 2:
        yield from _angles(evidence, *tables)  # cos comes before sin wherever both are passed


def _masks(evidence: Evidence, value: Value) -> Iterator[Suspect]:
    """Masks are (..., queries, keys), True where a query may look."""
    one, other = value.torch, value.flax
    if one.ndim < 2:
        return
    keys = one.shape[-1]
    ahead = np.roll(one, 1, axis=-1)
    ahead[..., 0] = one[..., 0]
    behind = np.roll(one, -1, axis=-1)
    behind[..., keys - 1] = False
    top = np.broadcast_to(np.tril(np.ones(one.shape[-2:], bool)), one.shape)
    for name, words, mask in (
        ("mask-one-ahead", "lets each query see one key of the future", ahead),
        ("mask-left-out", "hides nothing", np.ones_like(one)),
        ("mask-inverted", "is the other way round", ~one),
        ("mask-top-left", "is aligned top-left", top),
        ("mask-transposed", "has queries and keys swapped", one.swapaxes(-1, -2)),
    ):
        if suspect := evidence.suspect(name, f"the mask {words} in Flax", mask, other):
            yield suspect
    # The first query has to see something.
    hidden = "the mask hides each query's own key in Flax"
    if suspect := evidence.suspect(
        "mask-one-behind", hidden, behind[..., 1:, :], other[..., 1:, :]
    ):
        yield suspect


def _angles(evidence: Evidence, cos: Value, sin: Value) -> Iterator[Suspect]:
    """Compare the tables by the angles that they are made of."""
    sides = [(cos.torch, sin.torch), (cos.flax, sin.flax)]
    one, other = (np.arctan2(s, c) for c, s in sides)
    for step, words in ((1, "one too high"), (-1, "one too low")):
        a = one[..., 1:, :] if step > 0 else one[..., :-1, :]
        b = other[..., :-1, :] if step > 0 else other[..., 1:, :]
        if suspect := _same(
            evidence,
            f"position-{'ahead' if step > 0 else 'behind'}",
            f"positions are {words} in Flax",
            a,
            b,
        ):
            yield suspect
    if suspect := _same(
        evidence, "rope-backwards", "angles have the other sign in Flax", -one, other
    ):
        yield suspect
    if suspect := _same(
        evidence, "rope-swapped", "cos and sin are swapped in Flax", math.pi / 2 - one, other
    ):
        yield suspect
    for name, dtype in (("float32", np.float32), ("float16", np.float16)):
        rounded = cos.torch.astype(dtype).astype(np.float64)
        if suspect := evidence.suspect(
            "rounded", f"tables are rounded to {name} in Flax", rounded, cos.flax
        ):
            yield suspect
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
    steps = [(a[..., 1, :] - a[..., 0, :]).reshape(-1, a.shape[-1])[0] for a in (one, other)]
    mine, theirs = (np.mod(step, 2 * math.pi) for step in steps)
    if (mine <= 0).any() or (theirs <= 0).any():
        return
    ratio = theirs / mine
    after = _of_frequencies(theirs, sides[1])
    if np.allclose(ratio, 1, rtol=_FIT):
        yield from _offsets(evidence, mine, one, sides[1])
        return
    if np.ptp(ratio) < _FIT * abs(ratio[0]):
        words = f"angles are {ratio[0]:.6g} times PyTorch's in Flax: positions scaled"
        if suspect := evidence.judge("rope-scaled", words, after):
            yield suspect
        return
    thetas = [_theta(frequencies) for frequencies in (mine, theirs)]
    if all(theta is not None for theta in thetas):
        words = f"rope theta is {thetas[1]:.6g} in Flax, {thetas[0]:.6g} in PyTorch"
        name = "rope-theta"
    else:
        words = f"{int((abs(ratio - 1) > _FIT).sum())} of {len(ratio)} rotary frequencies differ"
        words += ": a scaling (llama3, yarn) that one side leaves out" if None in thetas else ""
        name = "rope-frequencies"
    if suspect := evidence.judge(name, words, after):
        yield suspect


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
    words = f"positions of the rows are off by {rows} in Flax"
    if suspect := evidence.judge("positions", words, after):
        yield suspect


def _of_frequencies(frequencies: Array, side: tuple[Array, Array]) -> float:
    """How well one set of frequencies explains a side's whole tables."""
    cos, sin = side
    first = np.arctan2(sin, cos)[..., :1, :]
    angles = first + np.arange(cos.shape[-2])[:, None] * frequencies
    return max(relative_error(np.cos(angles), cos), relative_error(np.sin(angles), sin))


def _theta(frequencies: Array) -> float | None:
    """The base of a geometric series, or None where it is none."""
    if len(frequencies) < 2:
        return None
    logs = np.log(frequencies)
    steps = np.diff(logs)
    if np.ptp(steps) > 1e-6:
        return None
    return float(np.exp(-steps.mean() * len(frequencies)))
