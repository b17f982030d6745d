"""The Flax side against what the PyTorch side has left in the spool, array by array."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from parity.tracing.compare.errors import (
    FORWARD,
    Arrays,
    Axes,
    LeafError,
    compare,
    not_finite,
    precision,
    relative_error,
)
from parity.tracing.match.align import Alignment, Pair
from parity.tracing.match.fused import View, cut, index, views
from parity.tracing.record.calls import Call, Kind, Site
from parity.tracing.record.torch_side import TorchRecord

Shapes = Mapping[Site, Call[jax.ShapeDtypeStruct]]
Array = NDArray[Any]
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
        repaired: a pair whose outputs are the PyTorch side's too.
    """

    def __init__(
        self,
        record: TorchRecord,
        alignment: Alignment,
        shapes: Shapes,
        alone: Pair | None = None,
        kind: Kind = "inputs",
        before: Comparison | None = None,
        repaired: Pair | None = None,
    ) -> None:
        self.errors: dict[tuple[Pair, Kind], list[LeafError]] = {}
        self.dtype: dict[Pair, str] = {}
        self._record, self._shapes = record, shapes
        self._home = {site: pair for pair in alignment.pairs for site in pair.flax}
        self._waiting: dict[tuple[Site, Kind], dict[str, NDArray[Any]]] = {}
        self._joined: dict[Pair, dict[Site, dict[str, NDArray[Any]]]] = {}
        self._given: dict[tuple[Pair, str], list[Array]] = {}
        self._views = {pair: views(pair, record.calls, shapes) for pair in alignment.pairs}
        self._expecting = False
        self._alone, self._kind, self._before = alone, kind, before
        self._repaired = repaired
        self._wanted = alignment.inside(alone)
        self._replaced = (
            {alone} if kind == "inputs" else alignment.sharing(alone) if alone else set()
        )

    def heard(self, site: Site, kind: Kind, name: str, array: NDArray[Any]) -> None:
        """An array of the Flax side."""
        pair = self._home.get(site)
        if pair is None or pair not in self._wanted:
            return
        if kind in _FORWARD_OF:
            self._gradient(pair, site, kind, name, array)
            return
        waiting = self._waiting.setdefault((site, kind), {})
        waiting[name] = array
        if len(waiting) == len(self._shapes[site].of(kind)):
            self._complete(pair, site, kind, self._waiting.pop((site, kind)))

    def substitute(self, site: Site, kind: Kind, name: str) -> NDArray[Any] | None:
        """The PyTorch side's array, in the pair that is run alone.

        For gradients all that was computed forward is the PyTorch side's too: rounding must not
        decide on which side of a kink, as in ReLU, a gradient is taken.
        """
        pair = self._home.get(site)
        if pair is None or pair not in self._wanted | self._replaced or self._before is None:
            return None
        own = kind == self._kind and pair in self._replaced
        own |= kind == "outputs" and pair is self._repaired
        if not own and (self._kind == "inputs" or kind in _FORWARD_OF):
            return None
        forward, parts = _FORWARD_OF.get(kind, kind), []
        for part, view in self._views_of(pair, site, kind):
            leaf = self._before.leaf(pair, forward, name, part)
            if leaf is None or not self._known(view.torch, kind, leaf.torch):
                return None
            found = self._torch(view, kind).get(leaf.torch)
            if found is None:  # a gradient of zeros
                found = np.zeros_like(self._torch(view, forward)[leaf.torch])
            parts.append(leaf.operation(found))
        cuts = [view.flax_cut for view in self._views[pair] if view.flax_cut is not None]
        return np.concatenate(parts, cuts[0][0]) if len(parts) > 1 else parts[0] if parts else None

    def left(self, site: Site) -> None:
        """Ends the run where only one pair is wanted."""
        alone = self._alone
        if alone is not None and self._kind == "inputs" and site == alone.flax[-1]:
            raise Ended

    def leaf(self, pair: Pair, kind: Kind, name: str, part: int = 0) -> LeafError | None:
        """What an array of the Flax side was compared with."""
        found = self.errors.get((pair, kind), [])
        return next((e for e in found if e.flax == name and e.part == part), None)

    def _views_of(self, pair: Pair, site: Site, kind: Kind) -> list[tuple[int, View]]:
        """The views of a call; its parts share their inputs."""
        found = [(i, view) for i, view in enumerate(self._views[pair]) if view.flax == site]
        if _FORWARD_OF.get(kind, kind) == "inputs":
            return [(0, dataclasses.replace(view, torch_cut=None)) for _, view in found[:1]]
        return found

    def _complete(
        self, pair: Pair, site: Site, kind: Kind, arrays: dict[str, NDArray[Any]]
    ) -> None:
        """All arrays of one kind of a call are there."""
        arrays = {name: arrays[name] for name in self._shapes[site].of(kind)}  # jit has no order
        if kind == "inputs":
            if site == pair.flax[0]:  # parts share their inputs
                self._compare(pair, kind, [(self._torch(View(pair.torch[0], site), kind), arrays)])
            return
        joined = self._joined.setdefault(pair, {})
        joined[site] = arrays
        if len(joined) < len(pair.flax):
            return
        del self._joined[pair]
        sides = [
            (self._torch(view, kind), cut(joined[view.flax], view.flax_cut))
            for view in self._views[pair]
        ]
        self._compare(pair, kind, sides)

    def _compare(self, pair: Pair, kind: Kind, sides: Sequence[tuple[Arrays, Arrays]]) -> None:
        dtype = precision(*(array for side in sides for part in side for array in part.values()))
        if kind == "outputs":
            self.dtype[pair] = dtype
        errors = self.errors[pair, kind] = []
        like = self._layouts(pair) if kind == "outputs" else set()
        # A model's outputs are what its users read: a transposed square one is an error there,
        # unless the two read their inputs in different layouts too.
        as_it_is = kind == "outputs" and not pair.torch[0].path and not like
        for part, (one, other) in enumerate(sides):
            found = [
                dataclasses.replace(e, part=part)
                for e in compare(one, other, FORWARD[dtype], as_it_is, like)
            ]
            self._keep(pair, kind, one, other, found)
            errors += found

    def _layouts(self, pair: Pair) -> set[Axes]:
        """Orders of axes, other than the same, in which inputs of a call agreed."""
        return {
            error.operation.axes
            for error in self.errors.get((pair, "inputs"), [])
            if error.operation.reorders
            and not error.operation.is_identity
            and error.error <= FORWARD[self.dtype.get(pair, "float32")]
        }

    def _keep(
        self, pair: Pair, kind: Kind, torch: Arrays, flax: Arrays, errors: list[LeafError]
    ) -> None:
        """For those who want the arrays too."""

    def hear_gradient(
        self, pair: Pair, kind: Kind, name: str, torch: NDArray[Any], flax: NDArray[Any]
    ) -> None:
        """For those who want the gradients too, both in Flax's layout."""

    def _torch(self, view: View, kind: Kind) -> dict[str, NDArray[Any]]:
        """The PyTorch side's arrays."""
        stored = self._record.calls[view.torch].of(kind)
        arrays = {name: self._record.spool.get(where) for name, where in stored.items()}
        return arrays if _FORWARD_OF.get(kind, kind) == "inputs" else cut(arrays, view.torch_cut)

    # Gradients.

    def _known(self, site: Site, kind: Kind, name: str) -> bool:
        return (kind, name) not in self._record.calls[site].unknown

    def _gradient(self, pair: Pair, site: Site, kind: Kind, name: str, array: Array) -> None:
        if not self._expecting:
            self._expecting = True
            self._expect_gradients()
        if _FORWARD_OF[kind] == "inputs" and len(pair.flax) + len(pair.torch) > 2:
            self._shared_input(pair, kind, name, array)
            return
        for part, view in self._views_of(pair, site, kind):
            leaf = (self._before or self).leaf(pair, _FORWARD_OF[kind], name, part)
            if leaf is not None and self._known(view.torch, kind, leaf.torch):
                one = self._torch(view, kind).get(leaf.torch)
                other = array if view.flax_cut is None else array[index(view.flax_cut)]
                self._put_gradient(pair, kind, leaf, one, other)

    def _shared_input(self, pair: Pair, kind: Kind, name: str, array: Array) -> None:
        """What calls that do together what one does on the other side give back to their input."""
        given = self._given.setdefault((pair, name), [])
        given.append(array)
        leaf = (self._before or self).leaf(pair, "inputs", name)
        if len(given) < len(pair.flax):
            return
        del self._given[pair, name]
        if leaf is None:
            return
        if not all(self._known(site, kind, leaf.torch) for site in pair.torch):
            return
        sides = [self._torch(View(site, pair.flax[0]), kind) for site in pair.torch]
        ones = [side[leaf.torch].astype(np.float64) for side in sides if leaf.torch in side]
        other = sum((a.astype(np.float64) for a in given[1:]), given[0].astype(np.float64))
        one = sum(ones[1:], ones[0]) if ones else None
        self._put_gradient(pair, kind, leaf, one, other)

    def _put_gradient(
        self, pair: Pair, kind: Kind, leaf: LeafError, one: Array | None, other: Array
    ) -> None:
        # PyTorch makes no gradient of what the loss does not depend on.
        one = np.zeros_like(other) if one is None else leaf.operation(one)
        self.hear_gradient(pair, kind, leaf.flax, one, other)
        error = relative_error(one, other)
        where = not_finite(one, other, error)
        found = dataclasses.replace(leaf, error=error, not_finite=where)
        errors = self.errors.setdefault((pair, kind), [])
        errors[:] = [e for e in errors if (e.flax, e.part) != (leaf.flax, leaf.part)] + [found]

    def _expect_gradients(self) -> None:
        """All that the PyTorch side has: JAX does not tell of those that are known to be zero."""
        for pair in filter(self._views.get, self._wanted):
            for kind, forward in _FORWARD_OF.items():
                errors = (self._before or self).errors.get((pair, forward), [])
                views = self._views[pair]
                missing = [
                    dataclasses.replace(leaf, error=1.0)
                    for leaf in errors
                    if leaf.torch in self._record.calls[views[leaf.part].torch].of(kind)
                    and self._known(views[leaf.part].torch, kind, leaf.torch)
                ]
                if missing:
                    self.errors[pair, kind] = missing
