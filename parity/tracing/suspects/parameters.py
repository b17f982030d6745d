"""Hypotheses about a tensor that is not the same on both sides: how did it become so?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.tracing.errors import relative_error
from parity.tracing.result import Suspect
from parity.tracing.suspects.evidence import Evidence, Parameter
from parity.tracing.suspects.tensors import describe, part_that_differs, place, rearranged

Array = NDArray[Any]
_EQUAL = 1e-12


def parameter_suspects(evidence: Evidence) -> Iterator[Suspect]:
    """What became of every tensor that differs; each is tried by putting the right one back."""
    differing = [p for p in evidence.parameters if relative_error(p.torch, p.flax) > _EQUAL]
    found = []
    for parameter in differing:
        after = evidence.with_parameters({parameter.link.flax: parameter.torch})
        if suspect := _judged(evidence, parameter, after):
            found.append(suspect)
    if not found and len(differing) > 1:  # they are wrong together
        after = evidence.with_parameters({p.link.flax: p.torch for p in differing})
        found = [s for p in differing if (s := _judged(evidence, p, after)) is not None]
    yield from found


def _judged(evidence: Evidence, parameter: Parameter, after: float) -> Suspect | None:
    if evidence.judge("", "", after) is None:
        return None
    name, looks = _looks(parameter, evidence)
    return evidence.judge(name, f"{parameter.name} {looks}", after)


def _looks(parameter: Parameter, evidence: Evidence) -> tuple[str, str]:
    """The name of what happened to a tensor, and words for it."""
    one, other = parameter.torch, parameter.flax
    # Either side may be the right one.
    sides = ((one, other, ""), (other, one, f" (on the {evidence.usual} side)"))
    for a, b, side in sides:
        if found := describe(a, b):
            return found[0], found[1] + side
    for link, array in evidence.others:
        same = array.shape == other.shape and link.flax != parameter.link.flax
        if same and np.array_equal(array, other):
            return "weight-of-another", f"holds the values of {link.torch}"
    if np.count_nonzero(one != other) < _TELLING:
        return _by_size(one, other)
    if (part := part_that_differs(one, other)) is not None:
        where = place(one.shape, part)
        for a, b, side in sides:
            if found := describe(a[part], b[part]):
                return found[0], f"{found[1]}{side}, in {where} only"
        for link, array in evidence.others:
            if array.shape == other.shape and np.array_equal(array[part], other[part]):
                return "weight-of-another", f"holds the values of {link.torch} in {where}"
        if found := rearranged(one[part], other[part]):
            return found[0], f"{found[1]}, in {where} only"
        return "weight-differs", f"differs in {where} only"
    if found := rearranged(one, other):
        return found
    return _by_size(one, other)


def _by_size(one: Array, other: Array) -> tuple[str, str]:
    """What is left to say: where, by how much, and whether it looks like noise."""
    differing = int(np.count_nonzero(one != other))
    if np.array_equal(np.sort(one, axis=None), np.sort(other, axis=None)):
        return "weight-reordered", f"has its values in another order ({differing} moved)"
    difference = other - one
    everywhere = differing > one.size // 2
    if everywhere and one.ndim == 2 and max(one.shape) <= _LARGEST and min(one.shape) > 3:
        sizes = np.linalg.svd(difference, compute_uv=False)
        rank = int((sizes > sizes[0] * 1e-9).sum())
        if rank <= min(one.shape) // 3:
            words = f"differs by a matrix of rank {rank}: an adapter (LoRA) merged on one side"
            return "weight-low-rank", words
    for side, array in (("Flax", other), ("PyTorch", one)):
        levels = len(np.unique(array))
        if levels <= min(256, array.size // 4):
            return "weight-quantised", f"takes only {levels} values in {side}: quantised"
    size = float(np.abs(difference).max() / np.abs(one).max())
    if everywhere and size < _NOISE:
        words = f"differs everywhere, by at most {size:.1g} of its largest value: "
        return "weight-noise", words + "rounded, quantised, or of another checkpoint"
    return "weight-differs", f"differs in {differing} of {one.size} values"


_TELLING = 4  # with fewer values anything explains them
_LARGEST = 4096  # of matrices whose rank is computed
_NOISE = 0.1
