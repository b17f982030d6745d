"""From the whole model down to the one call that goes wrong by itself.

Forward: a call whose output differs is run again with what the PyTorch side put into it. If its
output still differs, the fault is inside: the search goes on among the calls made in it, in order
of execution, and errors are now those of this call alone. Where none of them differs by itself, it
is the call's own code. Backward: the same with the gradients of outputs, from the end.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from parity.tracing.compare.comparison import Comparison, Shapes
from parity.tracing.compare.errors import BACKWARD, FORWARD, worst
from parity.tracing.compare.flax_model import FlaxModel
from parity.tracing.compare.parameter_gradients import gradient_errors, parameter_gradients
from parity.tracing.match.align import Alignment, Pair
from parity.tracing.match.rules import Link
from parity.tracing.record.calls import Kind
from parity.tracing.record.spool import Spool
from parity.tracing.record.tensors import flax_tensors, tied_names, torch_tensors
from parity.tracing.record.torch_side import TorchRecord
from parity.tracing.result import Divergence

_PARTS = 4
_LARGER = 1000.0  # times the error of a narrower dtype: that is something else


@dataclasses.dataclass(frozen=True)
class Culprit:
    """Where the search ended.

    Attributes:
        pair: the call that goes wrong by itself.
        stage: the part of it that gets something else; None where its own output, or the gradient
            of its parameters or inputs, differs.
        divergence: what is said of it, with no suspects yet.
    """

    pair: Pair
    stage: Pair | None
    divergence: Divergence


class Walk:
    """The search for the culprit.

    Attributes:
        natural: the comparison of the two models as they run.
        gradient_errors: of every parameter's gradient, by its PyTorch name.
        loss: of the Flax side.
        again: runs the PyTorch side once more, forward; None where that cannot be done.
        least: errors up to this are passed over.
        rounding: a culprit that was passed over, since it is only a narrower dtype.
    """

    def __init__(
        self,
        record: TorchRecord,
        alignment: Alignment,
        shapes: Shapes,
        model: FlaxModel,
        links: Sequence[Link],
        torch_module: torch.nn.Module,
        again: Callable[[Spool], TorchRecord] | None = None,
    ) -> None:
        self.record, self.alignment, self.shapes, self.model = record, alignment, shapes, model
        self.links, self.torch_module, self.again = links, torch_module, again
        self.natural = Comparison(record, alignment, shapes)
        self.gradient_errors: dict[str, float] = {}
        self.loss: float | None = None
        self.least, self.rounding = 0.0, ""
        self._parts = _PARTS

    @functools.cached_property
    def tensors(self) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
        """The parameters of both sides, by name and by path."""
        return torch_tensors(self.torch_module), flax_tensors(self.model.variables)

    @functools.cached_property
    def tied(self) -> dict[str, str]:
        """Further names of tied parameters of the PyTorch side."""
        return tied_names(self.torch_module)

    def run(self, backward: bool) -> Culprit | None:
        """The first culprit, forward before backward, or None."""
        root = self.alignment.pairs[0]
        if not backward:
            self.model.forward(self.natural)
            return self._first(root)
        self.loss, gradients = self.model.backward(self.natural, root)
        self.gradient_errors = self._gradient_errors(gradients)
        del gradients  # as large as the model
        return self._first(root) or self._backward(root, self.natural, self.gradient_errors)

    def _first(self, root: Pair) -> Culprit | None:
        """The first culprit forward; a narrower dtype is none where much larger errors follow.

        Some models compute their norms in float32, whatever dtype they are given.
        """
        found = self._forward(root, self.natural)
        least = FORWARD["float32"]
        if found is None:
            return None
        said = found.divergence
        if said.dtype != "float64" or said.alone_error > least / 4:
            return found
        if self._error(self.natural, root, "outputs") > _LARGER * said.alone_error:
            self.least = least
            if further := self._forward(root, self.natural):
                self.rounding = f"{said.torch or '(root)'}: {said.where} is off by "
                self.rounding += f"{said.alone_error:.1e} alone, as in a narrower dtype"
                return further
            self.least = 0.0
        return found

    # Forward.

    def _forward(self, pair: Pair, alone: Comparison) -> Culprit | None:
        """The culprit in a call that has been run on the PyTorch side's inputs, or None."""
        bound = self._bound(FORWARD, pair)
        if self._error(alone, pair, "outputs") <= bound:
            return None
        if found := self._inside(pair, alone):
            return found
        if self._parts > 1 and bound > FORWARD[self.natural.dtype.get(pair, "float64")]:
            self._parts = 1  # something is wrong here: its parts get no more than single calls do
            found = self._inside(pair, alone)
            self._parts = _PARTS
            if found:
                return found
        return self._culprit(pair, alone, self._error(self.natural, pair, "outputs"))

    def _inside(self, pair: Pair, alone: Comparison) -> Culprit | None:
        """The culprit among the calls made in a call, or what it hands to one of them."""
        clean = True  # whatever ended before this agrees
        for child in self.alignment.children(pair):
            limit = self._bound(FORWARD, child)
            if clean and self._error(alone, child, "inputs") > limit:
                error = self._error(self.natural, child, "inputs")
                return self._culprit(pair, alone, error, child)
            if self._error(alone, child, "outputs") > limit:
                if self._is_made_up_for(pair, alone, child):
                    continue
                clean = False
                if found := self._forward(child, self._run_alone(child)):
                    return found
        return None

    def _is_made_up_for(self, pair: Pair, alone: Comparison, child: Pair) -> bool:
        """Whether a call around another makes up for its difference, as where it scales for it.

        With the PyTorch side's output in place of the child's, what goes into a later part is no
        longer the same: then the line between the two calls is drawn elsewhere, and that is all.
        """
        children = self.alignment.children(pair)
        same = [
            later
            for later in children[children.index(child) + 1 :]
            if self._error(alone, later, "inputs") <= self._bound(FORWARD, later)
        ]
        if not same:
            return False
        repaired = self._run_alone(pair, child)
        return any(
            self._error(repaired, later, "inputs") > self._bound(FORWARD, later) for later in same
        )

    def _run_alone(self, pair: Pair, repaired: Pair | None = None) -> Comparison:
        """A call of the Flax side, on the inputs of the PyTorch side; the model has its own."""
        comparison = Comparison(*self.alone(pair), repaired=repaired)
        self.model.forward(comparison)
        return comparison

    def alone(
        self, pair: Pair
    ) -> tuple[TorchRecord, Alignment, Shapes, Pair | None, Kind, Comparison]:
        """What a comparison of a call alone is made from; the whole model gets its own inputs."""
        alone = pair if self.alignment.parent[pair] is not None else None
        return (self.record, self.alignment, self.shapes, alone, "inputs", self.natural)

    def _culprit(
        self, pair: Pair, alone: Comparison, error: float, stage: Pair | None = None
    ) -> Culprit:
        dtype = self.natural.dtype.get(pair, "float64")
        parts = [e.error for e in alone.errors.get((pair, "outputs"), [])]
        worst_part = int(np.argmax(parts)) if len(parts) > 1 else 0
        divergence = Divergence(
            torch=pair.torch[worst_part if len(pair.torch) > 1 else 0].path,
            flax=pair.flax[worst_part if len(pair.flax) > 1 else 0].path,
            direction="forward",
            where="output" if stage is None else f"what goes into {stage.torch[0]}",
            error=error,
            input_error=self._error(self.natural, pair, "inputs"),
            alone_error=self._error(alone, pair, "outputs"),
            dtype=dtype,
            bound=FORWARD[dtype],
        )
        return Culprit(pair, stage, divergence)

    def _bound(self, table: Mapping[str, float], pair: Pair) -> float:
        """What is allowed; in narrow dtypes more for a call whose parts all add their rounding."""
        dtype = self.natural.dtype.get(pair, "float64")
        parts = dtype != "float64" and bool(self.alignment.children(pair))
        return max(table[dtype] * (self._parts if parts else 1), self.least)

    @staticmethod
    def _error(comparison: Comparison, pair: Pair, kind: Any) -> float:
        return worst(comparison.errors.get((pair, kind), []))

    # Backward.

    def _backward(
        self, pair: Pair, alone: Comparison, errors: Mapping[str, float]
    ) -> Culprit | None:
        """The culprit in a call whose outputs had the PyTorch side's gradients, or None.

        Args:
            pair: the call.
            alone: all that was computed in it.
            errors: of the gradients of its parameters, by name.
        """
        bound = self._bound(BACKWARD, pair)
        if max(self._error(alone, pair, "input_gradients"), self._own(pair, errors)) <= bound:
            return None
        clean = True
        for child in reversed(self.alignment.children(pair)):
            limit = self._bound(BACKWARD, child)
            if clean and self._error(alone, child, "output_gradients") > limit:
                return self._backward_culprit(pair, alone, errors, child)
            if max(self._error(alone, child, "input_gradients"), self._own(child, errors)) > limit:
                clean = clean and self._error(alone, child, "input_gradients") <= limit
                comparison = Comparison(
                    self.record,
                    self.alignment,
                    self.shapes,
                    child,
                    "output_gradients",
                    self.natural,
                )
                _, gradients = self.model.backward(comparison, self.alignment.pairs[0])
                inside = self._gradient_errors(gradients, child.torch[0].path)
                del gradients
                if found := self._backward(child, comparison, inside):
                    return found
        return self._backward_culprit(pair, alone, errors)

    def _backward_culprit(
        self,
        pair: Pair,
        alone: Comparison,
        errors: Mapping[str, float],
        stage: Pair | None = None,
    ) -> Culprit:
        dtype = self.natural.dtype.get(pair, "float64")
        found = max(self._error(alone, pair, "input_gradients"), self._own(pair, errors))
        natural = max(
            self._error(self.natural, pair, "input_gradients"),
            self._own(pair, self.gradient_errors),
        )
        divergence = Divergence(
            torch=pair.torch[0].path,
            flax=pair.flax[0].path,
            direction="backward",
            where="gradient" if stage is None else f"what comes to {stage.torch[0]}",
            error=natural,
            input_error=self._error(self.natural, pair, "output_gradients"),
            alone_error=found,
            dtype=dtype,
            bound=BACKWARD[dtype],
        )
        return Culprit(pair, stage, divergence)

    def _own(self, pair: Pair, errors: Mapping[str, float]) -> float:
        """The largest error of the gradients of a call's parameters."""
        path = pair.torch[0].path
        inside = f"{path}." if path else ""
        return max((e for name, e in errors.items() if name.startswith(inside)), default=0.0)

    def _gradient_errors(self, gradients: Any, path: str = "") -> dict[str, float]:
        return gradient_errors(self.parameter_gradients(gradients, path))

    def parameter_gradients(
        self, gradients: Any, path: str = ""
    ) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
        """The gradient of each parameter below a path, PyTorch's and Flax's, in Flax's layout."""
        return parameter_gradients(self.links, self.record, gradients, path)
