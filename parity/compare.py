"""One line of a proof: tensors against the truth, and two errors against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from parity.metrics import Pool, machine_epsilon, pooled_outputs, relative_l2

RATIO_BOUND = 2.0
Tensors = Mapping[str, NDArray[Any]]


@dataclasses.dataclass(frozen=True)
class Check:
    """One line of the proof; `where` names the module or tensor that `value` was measured at."""

    name: str
    dtype: str
    device: str
    compared: int
    value: float
    bound: float
    passed: bool
    where: str = ""


def passed(checks: Iterable[Check]) -> bool:
    """True where there are checks and all of them passed."""
    checks = list(checks)
    return bool(checks) and all(check.passed for check in checks)


def worst_tensor(
    name: str,
    truth: Tensors,
    found: Tensors,
    bound: float,
    dtype: str,
    device: str,
) -> Check:
    """Compare tensor by tensor; on failure `where` is the first one past the bound.

    Tensors come in the order of execution, so the first past the bound is the culprit or next to
    it, and the worst would only be its victim.

    Raises:
        ValueError: the two sides hold other tensors, or none: nothing would be proven.
    """
    if set(truth) != set(found) or not truth:
        missing = sorted(set(truth) ^ set(found))
        raise ValueError(f"{name}: the twins do not hold the same tensors: {missing or 'none'}")
    errors = {key: relative_l2(found[key], expected) for key, expected in truth.items()}
    past = [key for key, error in errors.items() if not error <= bound]
    worst = max(errors, key=lambda key: errors[key])
    where = past[0] if past else worst
    compared = sum(int(array.size) for array in truth.values())
    return Check(name, dtype, device, compared, errors[worst], bound, not past, where)


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
    (one over other, other over one), see `parity.control`. An error below a quarter of a machine
    epsilon counts as that.

    Raises:
        ValueError: the sides hold other tensors, or none.
    """
    if not (set(truth) == set(one) == set(other)) or not truth:
        raise ValueError(f"{name}: the twins do not hold the same tensors")
    layers: dict[str, list[str]] = {}
    for key in truth:
        layers.setdefault(_layer_of(key), []).append(key)
    floor = machine_epsilon(dtype) / 4
    errors = np.array(
        [[max(pool(side, truth, keys), floor) for side in (one, other)] for keys in layers.values()]
    )
    first, second = np.sqrt(np.mean(errors**2, axis=0))
    # Both ways, each with its own bound; shown is the way that comes closer to it.
    ways = [
        (float(first / second), RATIO_BOUND * control[0]),
        (float(second / first), RATIO_BOUND * control[1]),
    ]
    value, bound = max(ways, key=lambda way: way[0] / way[1])
    where = list(layers)[int(np.abs(np.log(errors[:, 0] / errors[:, 1])).argmax())]
    compared = sum(int(array.size) for array in truth.values())
    return Check(name, dtype, device, compared, value, bound, value <= bound, where)


def _layer_of(name: str) -> str:
    """`model.layers.3` for everything in that layer, `model` for what stands around the layers."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[:2] == ["model", "layers"] else parts[0]
