"""One line of a proof: tensors against the truth, and two errors against each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.check.measures import (
    Agreement,
    NothingProven,
    Pool,
    TensorError,
    machine_epsilon,
    pooled_outputs,
    tensor_error,
)

RATIO_BOUND = 2.0
Tensors = Mapping[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the proof.

    Attributes:
        name: what was compared.
        dtype: in which it was computed.
        device: where.
        compared: how many numbers.
        value: what was measured.
        bound: the most that `value` may be.
        passed: whether it is.
        where: the module, tensor or position that `value` was measured at; on failure the first
            one past the bound.
        control: what `value` (or, for a ratio, the error in it) would be between two runs of the
            same twin whose first weights differ by one unit in the last place of one of them;
            None where there is no such run.
        tensors: the error of every tensor that took part, in the order of execution.
        agreement: of logits, one entry for each twin that was held against a reference.
        reach: how far it looked: rows and the positions of their tokens, documents, or steps.
        vacuous: tensors that are zero on both sides: they are equal, and prove nothing.
    """

    name: str
    dtype: str
    device: str
    compared: int
    value: float
    bound: float
    passed: bool
    where: str = ""
    control: float | None = None
    tensors: tuple[TensorError, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    reach: str = ""
    vacuous: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """The check as it is written down: plain values, each tensor with its relative L2."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["tensors"] = [
            {
                "name": error.name,
                "side": error.side,
                "relative_l2": error.relative_l2,
                "largest": error.largest,
                "index": list(error.index),
            }
            for error in self.tensors
        ]
        values["agreement"] = [dataclasses.asdict(one) for one in self.agreement]
        values["vacuous"] = list(self.vacuous)
        return values


def passed(checks: Iterable[Check]) -> bool:
    """True where there are checks and all of them passed."""
    checks = list(checks)
    return bool(checks) and all(check.passed for check in checks)


def tensor_errors(name: str, truth: Tensors, found: Tensors, side: str) -> list[TensorError]:
    """The error of each tensor, in the order of `truth`; infinite where that is all zeros.

    Raises:
        ValueError: the two hold other tensors, or none.
        NothingProven: of `tensor_error`.
    """
    if set(truth) != set(found) or not truth:
        missing = sorted(set(truth) ^ set(found))
        raise ValueError(f"{name}: the twins do not hold the same tensors: {missing or 'none'}")
    return [_error(key, found[key], expected, side) for key, expected in truth.items()]


def _error(key: str, found: NDArray[Any], truth: NDArray[Any], side: str) -> TensorError:
    if truth.any() or not found.any() or found.shape != truth.shape:
        return tensor_error(key, found, truth, side)
    error = tensor_error(key, truth, found, side)
    return dataclasses.replace(error, size=0.0)


def zero_on_all_sides(truth: Tensors, *sides: Tensors) -> tuple[str, ...]:
    """The tensors that are all zeros in the truth and in every other side.

    Such are the gradients of the other projections in a model whose output projections are zero,
    as they often are when training begins. They are equal, and that proves nothing.

    Raises:
        NothingProven: all of them are.
    """
    zeros = tuple(
        key
        for key, array in truth.items()
        if array.size and not array.any() and not any(side[key].any() for side in sides)
    )
    if zeros and len(zeros) == len(truth):
        more = f", {zeros[1]}, ..." if zeros[1:] else ""
        raise NothingProven(
            f"all tensors are zero on both sides ({zeros[0]}{more}): nothing can be told from them"
        )
    return zeros


def _without(tensors: Tensors, names: tuple[str, ...]) -> Tensors:
    return {key: array for key, array in tensors.items() if key not in names}


def worst_tensor(
    name: str,
    truth: Tensors,
    found: Tensors,
    bound: float,
    dtype: str,
    device: str,
    side: str = "flax",
) -> Check:
    """Compare tensor by tensor; on failure `where` is the first one past the bound.

    Tensors come in the order of execution, so the first past the bound is the culprit or next to
    it, and the worst would only be its victim.

    Raises:
        ValueError: the two sides hold other tensors, or none.
        NothingProven: of `tensor_errors` and `zero_on_all_sides`.
    """
    zeros = zero_on_all_sides(truth, found) if set(truth) == set(found) else ()
    truth, found = _without(truth, zeros), _without(found, zeros)
    errors = tensor_errors(name, truth, found, side)
    past = [error.name for error in errors if not error.relative_l2 <= bound]
    worst = max(errors, key=lambda error: error.relative_l2)
    return Check(
        name,
        dtype,
        device,
        compared=sum(int(array.size) for array in truth.values()),
        value=worst.relative_l2,
        bound=bound,
        passed=not past,
        where=past[0] if past else worst.name,
        tensors=tuple(errors),
        vacuous=zeros,
    )


def rounding(
    name: str,
    truth: Tensors,
    one: Tensors,
    other: Tensors,
    *,
    dtype: str,
    device: str,
    control: tuple[float, float],
    pool: Pool = pooled_outputs,
) -> Check:
    """The two sides' errors over each other; `where` is the layer in which they differ most.

    Errors are pooled per layer, and then over the layers as their root mean square: what a layer's
    error is above its neighbours' is one rounding, amplified on its way through all of them (a
    healthy SmolLM2 had layers with a ratio of 3 in either direction), while a part that computes
    less exactly than it should stands out by orders of magnitude.

    The bound is 2, times `control`: how much less exact the one side's library is than the other's
    (one over other, other over one), see `parity.check.matmul_control`. An error below a quarter of
    a machine epsilon counts as that.

    Raises:
        ValueError: the sides hold other tensors, or none.
        NothingProven: of `tensor_errors` and `zero_on_all_sides`.
    """
    zeros: tuple[str, ...] = ()
    if set(truth) == set(one) == set(other):
        zeros = zero_on_all_sides(truth, one, other)
        truth, one, other = (_without(side, zeros) for side in (truth, one, other))
    sides = [
        tensor_errors(name, truth, found, side) for side, found in (("torch", one), ("flax", other))
    ]
    layers: dict[str, list[int]] = {}
    for index, key in enumerate(truth):
        layers.setdefault(_layer_of(key), []).append(index)
    floor = machine_epsilon(dtype) / 4
    errors = np.array(
        [
            [max(pool([errors[i] for i in indices]), floor) for errors in sides]
            for indices in layers.values()
        ]
    )
    first, second = np.sqrt(np.mean(errors**2, axis=0))
    value, bound = ratio(float(first), float(second), control)
    with np.errstate(invalid="ignore", divide="ignore"):  # infinite errors
        where = list(layers)[int(np.abs(np.log(errors[:, 0] / errors[:, 1])).argmax())]
    compared = sum(int(array.size) for array in truth.values())
    return Check(
        name,
        dtype,
        device,
        compared,
        value,
        bound,
        value <= bound,
        where,
        tensors=tuple(sides[0] + sides[1]),
        vacuous=zeros,
    )


def ratio(one: float, other: float, control: tuple[float, float]) -> tuple[float, float]:
    """Two errors over each other and the bound of that: of both ways the one closer to its bound.

    Args:
        one: an error, above 0.
        other: the error of the other side, above 0.
        control: what the bound of 2 is multiplied with, (one over other, other over one).
    """
    ways = [(one / other, RATIO_BOUND * control[0]), (other / one, RATIO_BOUND * control[1])]
    if not (math.isfinite(one) and math.isfinite(other)):
        return math.inf, ways[0][1] if one > other else ways[1][1]
    return max(ways, key=lambda way: way[0] / way[1])


def _layer_of(name: str) -> str:
    """`model.layers.3` for everything in that layer, `model` for what stands around the layers."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[:2] == ["model", "layers"] else parts[0]
