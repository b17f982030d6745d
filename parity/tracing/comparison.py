"""The Flax side against what the PyTorch side has left in the spool, array by array."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from parity.tracing.align import Alignment, Pair
from parity.tracing.calls import Call, Kind, Site
from parity.tracing.errors import (
    FORWARD,
    Arrays,
    LeafError,
    compare,
    precision,
    relative_error,
)
from parity.tracing.torch_side import TorchRecord

Shapes = Mapping[Site, Call[jax.ShapeDtypeStruct]]
_FORWARD_OF: dict[Kind, Kind] = {"input_gradients": "inputs", "output_gradients": "outputs"}


class Ended(Exception):
    """The call that a run was made for has ended."""


class Comparison:
    """A listener that compares every call of the Flax side with its partner.

    Args:
        record: the PyTorch side.
        alignment: which calls are partners.
        shapes: the calls of the Flax side.
        alone: a pair whose calls get the PyTorch side's arrays in place of their own, so that what
            is wrong before them does not count.
        kind: which of its arrays: `inputs`, or `output_gradients`.
        before: a comparison of the whole model, which knows the layouts.
    """

    def __init__(
        self,
        record: TorchRecord,
        alignment: Alignment,
        shapes: Shapes,
        alone: Pair | None = None,
        kind: Kind = "inputs",
        before: Comparison | None = None,
    ) -> None:
        self.errors: dict[tuple[Pair, Kind], list[LeafError]] = {}
        self.dtype: dict[Pair, str] = {}
        self._record, self._shapes = record, shapes
        self._home = {site: pair for pair in alignment.pairs for site in pair.flax}
        self._waiting: dict[tuple[Site, Kind], dict[str, NDArray[Any]]] = {}
        self._joined: dict[tuple[Pair, Kind], dict[Site, dict[str, NDArray[Any]]]] = {}
        self._alone, self._kind, self._before = alone, kind, before
        self._wanted = alignment.inside(alone)

    def heard(self, site: Site, kind: Kind, name: str, array: NDArray[Any]) -> None:
        """An array of the Flax side."""
        pair = self._home.get(site)
        if pair is None or pair not in self._wanted:
            return
        if kind in _FORWARD_OF:
            self._gradient(pair, kind, name, array)
            return
        waiting = self._waiting.setdefault((site, kind), {})
        waiting[name] = array
        if len(waiting) == len(self._shapes[site].of(kind)):
            self._complete(pair, site, kind, self._waiting.pop((site, kind)))

    def substitute(self, site: Site, kind: Kind, name: str) -> NDArray[Any] | None:
        """The PyTorch side's array, for the pair that is run alone."""
        pair = self._home.get(site)
        if pair is None or pair != self._alone or kind != self._kind or self._before is None:
            return None
        leaf = self._before.leaf(pair, _FORWARD_OF.get(kind, kind), name)
        if leaf is None:
            return None
        found = self._torch(pair.torch[0], kind).get(leaf.torch)
        return None if found is None else leaf.operation(found)

    def left(self, site: Site) -> None:
        """Ends the run where only one pair is wanted."""
        alone = self._alone
        if alone is not None and self._kind == "inputs" and site == alone.flax[-1]:
            raise Ended

    def leaf(self, pair: Pair, kind: Kind, name: str) -> LeafError | None:
        """What an array of the Flax side was compared with."""
        return next((e for e in self.errors.get((pair, kind), []) if e.flax == name), None)

    def _complete(
        self, pair: Pair, site: Site, kind: Kind, arrays: dict[str, NDArray[Any]]
    ) -> None:
        """All arrays of one kind of a call are there."""
        if len(pair.flax) > 1 and kind == "inputs" and site != pair.flax[0]:
            return  # they share their inputs
        if kind == "inputs" or len(pair.torch) == len(pair.flax) == 1:
            torch = self._torch(pair.torch[0], kind)
            self._compare(pair, kind, [(torch, arrays)])
            return
        joined = self._joined.setdefault((pair, kind), {})
        joined[site] = arrays
        if len(joined) < len(pair.flax):
            return
        ones: list[Arrays] = [self._torch(site, kind) for site in pair.torch]
        others: list[Arrays] = [joined[site] for site in pair.flax]
        if len(ones) == 1:
            ones = _split(ones[0], others)
        else:
            others = _split(others[0], ones)
        self._compare(pair, kind, list(zip(ones, others, strict=True)))

    def _compare(self, pair: Pair, kind: Kind, sides: list[tuple[Arrays, Arrays]]) -> None:
        dtype = precision(*(array for side in sides for part in side for array in part.values()))
        if kind == "outputs":
            self.dtype[pair] = dtype
        errors = self.errors[pair, kind] = []
        for one, other in sides:
            found = compare(one, other, FORWARD[dtype])
            self._keep(pair, kind, one, other, found)
            errors += found

    def _keep(
        self, pair: Pair, kind: Kind, torch: Arrays, flax: Arrays, errors: list[LeafError]
    ) -> None:
        """For those who want the arrays too."""

    def _torch(self, site: Site, kind: Kind) -> dict[str, NDArray[Any]]:
        """The PyTorch side's arrays."""
        stored = self._record.calls[site].of(kind)
        return {name: self._record.spool.get(where) for name, where in stored.items()}

    def _gradient(self, pair: Pair, kind: Kind, name: str, array: NDArray[Any]) -> None:
        if len(pair.flax) > 1 or len(pair.torch) > 1:
            return
        leaf = (self._before or self).leaf(pair, _FORWARD_OF[kind], name)
        if leaf is None:
            return
        stored = self._record.calls[pair.torch[0]].of(kind).get(leaf.torch)
        if stored is None:  # torch makes no gradient of what the loss does not depend on
            error = math.inf if np.any(array != 0) else 0.0
        else:
            error = relative_error(leaf.operation(self._record.spool.get(stored)), array)
        found = LeafError(leaf.torch, name, error, leaf.operation)
        self.errors.setdefault((pair, kind), []).append(found)


def _split(whole: Arrays, parts: Sequence[Arrays]) -> list[Arrays]:
    """The first output of a call, cut into as many parts as there are, each of its part's size.

    Along the last axis, where linear layers have their features; else along the second, where
    convolutions of PyTorch have theirs.
    """
    array = next(iter(whole.values()))
    sizes = [next(iter(part.values())).size for part in parts]
    for axis in (array.ndim - 1, 1):
        widths = [size * array.shape[axis] / array.size for size in sizes]
        if sum(widths) == array.shape[axis] and all(width.is_integer() for width in widths):
            ends = np.cumsum(widths).astype(int)[:-1]
            return [{"": part} for part in np.split(array, ends, axis)]
    return [{} for _ in parts]  # nothing to compare
