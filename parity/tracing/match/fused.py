"""Calls that one side makes at once and the other in parts: a fused query, key and value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.tracing.match.align import Pair
from parity.tracing.record.calls import Call, Site

Cut = tuple[int, int, int]  # axis, start, stop


@dataclasses.dataclass(frozen=True)
class View:
    """A call on each side, or the part of one's output that is the other's output.

    Attributes:
        torch: and flax: the calls.
        torch_cut: and flax_cut: which part of the output; None: all outputs.
    """

    torch: Site
    flax: Site
    torch_cut: Cut | None = None
    flax_cut: Cut | None = None


def views(
    pair: Pair, torch: Mapping[Site, Call[Any]], flax: Mapping[Site, Call[Any]]
) -> list[View]:
    """What of the two sides is to be compared; nothing where the outputs' sizes do not add up."""
    if len(pair.torch) == len(pair.flax) == 1:
        return [View(pair.torch[0], pair.flax[0])]
    if len(pair.torch) == 1:
        cuts = _cuts(_shape(torch, pair.torch[0]), [_shape(flax, site) for site in pair.flax])
        return [
            View(pair.torch[0], site, torch_cut=c) for site, c in zip(pair.flax, cuts, strict=False)
        ]
    cuts = _cuts(_shape(flax, pair.flax[0]), [_shape(torch, site) for site in pair.torch])
    return [View(site, pair.flax[0], flax_cut=c) for site, c in zip(pair.torch, cuts, strict=False)]


def cut(arrays: Mapping[str, NDArray[Any]], where: Cut | None) -> dict[str, NDArray[Any]]:
    """The part of a call's first array; without a cut all arrays."""
    if where is None or not arrays:
        return dict(arrays)
    name, array = next(iter(arrays.items()))
    return {name: array[index(where)]}


def index(where: Cut) -> tuple[slice, ...]:
    """What numpy takes for it."""
    axis, start, stop = where
    return (slice(None),) * axis + (slice(start, stop),)


def _shape(calls: Mapping[Site, Call[Any]], site: Site) -> tuple[int, ...]:
    outputs = calls[site].outputs
    return next(iter(outputs.values())).shape if outputs else (0,)


def _cuts(whole: tuple[int, ...], parts: Sequence[tuple[int, ...]]) -> list[Cut]:
    """Along the last axis, where linear layers have their features; else along the second, where
    convolutions of PyTorch have theirs.
    """
    size = int(np.prod(whole))
    for axis in (len(whole) - 1, 1):
        if size == 0 or axis >= len(whole):
            continue
        widths = [int(np.prod(part)) * whole[axis] / size for part in parts]
        if sum(widths) == whole[axis] and all(width.is_integer() for width in widths):
            ends = [int(end) for end in np.cumsum(widths)]
            return [(axis, end - int(w), end) for end, w in zip(ends, widths, strict=True)]
    return []
