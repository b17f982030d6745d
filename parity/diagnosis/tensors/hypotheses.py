"""Hypotheses about a tensor that is not the same on both sides: how did it become so?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.diagnosis.evidence import ROUNDED, Evidence, Parameter
from parity.diagnosis.tensors.changes import describe, fitted, same_values
from parity.diagnosis.tensors.rows import (
    levels,
    part_that_differs,
    place,
    rearranged,
    rows_alike,
)
from parity.tracing.compare.errors import relative_error
from parity.tracing.match.rules import Link
from parity.tracing.result import Suspect

Array = NDArray[Any]
_EQUAL = 1e-12


def parameter_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What became of every tensor that differs; each is tried by putting the right one back."""
    differing = [p for p in evidence.parameters if relative_error(p.torch, p.flax) > _EQUAL]
    found = []
    for parameter in differing:
        after = evidence.with_parameters({parameter.link: parameter.torch})
        if suspect := _judged(evidence, parameter, after):
            found.append(suspect)
    if not found and len(differing) > 1:  # they are wrong together
        after = evidence.with_parameters({p.link: p.torch for p in differing})
        found = [s for p in differing if (s := _judged(evidence, p, after)) is not None]
    yield from found


def _judged(evidence: Evidence, parameter: Parameter, after: float) -> Suspect | None:
    if evidence.judge("", "", after) is None:
        return None
    name, looks = _looks(parameter, evidence)
    return evidence.judge(name, f"{parameter.name} {looks}", after)


def _looks(parameter: Parameter, evidence: Evidence) -> tuple[str, str]:
    """The name of what happened to a tensor, and words for it."""
    one, other = (np.asarray(a, np.float64) for a in (parameter.torch, parameter.flax))
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return _not_finite(one, other)
    if np.count_nonzero(one != other) < _TELLING:
        return _by_size(one, other)
    # Either side may be the right one.
    sides = ((one, other, ""), (other, one, f" (on the {evidence.usual} side)"))
    for a, b, side in sides:
        for view in _views(parameter.link):
            if found := describe(view(a), view(b)):
                return found[0], found[1] + side
    others = [(link, a) for link, a in evidence.others if link.flax != parameter.link.flax]
    narrow = _narrow(other)
    for link, array in others:
        if array.shape == other.shape:
            if np.array_equal(array, other):
                return "weight-of-another", f"holds the values of {link.torch}"
            if narrow and np.array_equal(array.astype(ROUNDED[narrow]).astype(float), other):
                words = f"holds the values of {link.torch}, rounded to {narrow}"
                return "weight-of-another", words
    for a, b, side in sides:
        if found := rearranged(a, b):
            return found[0], found[1] + side
    for link, array in others:
        if array.T.shape == other.shape and np.array_equal(array.T, other):
            return "weight-of-another", f"holds the values of {link.torch}, transposed"
    part = part_that_differs(one, other)
    where = "" if part is None else f", in {place(one.shape, part)} only"
    for a, b, side in sides if part is not None else ():
        if found := describe(a[part], b[part]) or rows_alike(b[part]):
            return found[0], f"{found[1]}{side}{where}"
    for link, array in others:  # as a rule it is Flax's that were carried over
        same = array.shape == one.shape and np.array_equal(array, one)
        if same or (array.T.shape == one.shape and np.array_equal(array.T, one)):
            words = f"holds the values of {link.torch}{'' if same else ', transposed'}"
            return "weight-of-another", f"{words} (on the PyTorch side)"
    if found := _reordered_of_another(other, others) or _of_others(other, others):
        return found
    for a, b, side in sides:
        cut = slice(None) if part is None else part
        if found := fitted(a[cut], b[cut]):
            return found[0], f"{found[1]}{side}{where}"
    if narrow and not _narrow(one):  # something else, and then rounded
        rounded = dataclasses.replace(parameter, torch=one.astype(ROUNDED[narrow]).astype(float))
        name, words = _looks(rounded, evidence)
        if name not in _VAGUE:
            return name, f"{words}, and is rounded to {narrow}"
    name, words = _by_size(one, other)
    return name, f"differs{where}".replace(", in", " in") if where else words


def _views(link: Link) -> Iterator[Callable[[Array], Array]]:
    """As a matrix (in, out) where that is what PyTorch has of a tensor with heads; as it is."""
    if len(link.operation.source) == 2 < len(link.operation.merged):
        yield lambda array: link.operation.inverse(array).T
    yield lambda array: array


def _narrow(array: Array) -> str:
    """The narrowest dtype that holds the values exactly, but for that of files, float32."""
    for name in ("bfloat16", "float16"):
        if np.array_equal(array.astype(ROUNDED[name]).astype(float), array):
            return name
    return ""


def _of_others(wrong: Array, others: Sequence[tuple[Link, Array]]) -> tuple[str, str] | None:
    """Outputs that are those of other tensors, as where a fused one was cut otherwise."""
    if wrong.ndim != 2:
        return None
    known = {
        column.tobytes(): (link.torch, i)
        for link, array in others
        if array.ndim == 2 and array.shape[0] == wrong.shape[0] and array.size <= _SEARCHED
        for i, column in enumerate(np.ascontiguousarray(array.T))
    }
    found = [known.get(column.tobytes()) for column in np.ascontiguousarray(wrong.T)]
    places = [i for i, origin in enumerate(found) if origin is not None]
    if not places:
        return None
    name, first = found[places[0]] or ("", 0)
    words = f"holds outputs of other tensors in {len(places)} of its {len(found)} outputs, first "
    words += f"that of {name}[{first}] as its output {places[0]}: a fused tensor cut otherwise"
    return "weight-of-another", words


def _reordered_of_another(
    wrong: Array, others: Sequence[tuple[Link, Array]]
) -> tuple[str, str] | None:
    """All values of another tensor, in another order."""
    for link, array in others:
        if array.shape == wrong.shape and same_values(array, wrong):
            found = describe(array, wrong)
            how = f", and {found[1]}" if found else ", in another order"
            return "weight-of-another", f"holds the values of {link.torch}{how}"
    return None


def _not_finite(one: Array, other: Array) -> tuple[str, str]:
    """NaN or infinity on one side, or on both."""
    sides = [int(np.count_nonzero(~np.isfinite(a))) for a in (other, one)]
    words = f"has {sides[0]} values that are no finite numbers in Flax, {sides[1]} in PyTorch"
    bad = ~(np.isfinite(one) & np.isfinite(other))
    part = part_that_differs(np.where(bad, 1.0, 0.0), np.zeros(one.shape))
    return "weight-not-finite", words + ("" if part is None else f", {place(one.shape, part)}")


def _by_size(one: Array, other: Array) -> tuple[str, str]:
    """What is left to say: where, by how much, and whether it looks like noise."""
    differing = int(np.count_nonzero(one != other))
    if same_values(one, other):
        return "weight-reordered", f"has its values in another order ({differing} moved)"
    difference = other - one
    everywhere = differing > one.size // 2
    if everywhere and one.ndim == 2 and max(one.shape) <= _LARGEST and min(one.shape) > 3:
        sizes = np.linalg.svd(difference, compute_uv=False)
        unit = 2.0**-8 if _narrow(one) or _narrow(other) else 2.0**-23
        noise = unit * float(np.sqrt(np.mean(np.square(one)) * max(one.shape)))
        rank = int((sizes > noise).sum())
        if rank <= min(one.shape) // 3:
            words = f"differs by a matrix of rank {rank}: an adapter (LoRA) merged on one side"
            return "weight-low-rank", words
    for side, array in (("Flax", other), ("PyTorch", one)):
        if (found := levels(array)) is not None:
            return "weight-quantised", f"takes only {found} in {side}: quantised"
    size = float(np.abs(difference).max() / max(np.abs(one).max(), np.abs(other).max()))
    if everywhere and size < _NOISE:
        words = f"differs everywhere, by at most {size:.1g} of its largest value: "
        return "weight-noise", words + "rounded, quantised, or of another checkpoint"
    words = f"differs in {differing} of {one.size} values"
    if everywhere and one.any() and other.any():
        a, b = (array / np.abs(array).max() for array in (one, other))
        alike = float(np.vdot(a, b)) / float(np.linalg.norm(a) * np.linalg.norm(b))
        words += f" (correlation {alike:.2f}: "
        words += "related values)" if abs(alike) > _RELATED else "other values altogether)"
    return "weight-differs", words


_VAGUE = {"weight-differs", "weight-noise", "weight-quantised"}
_TELLING = 4  # with fewer values anything explains them
_SEARCHED = 1 << 22  # values of a tensor whose columns are looked for
_LARGEST = 4096  # of matrices whose rank is computed
_NOISE = 0.1
_RELATED = 0.3
