"""One line of a proof: tensors against the truth, and two errors against each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

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


def worst_ratio(
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
    """The two sides' errors over each other, pooled per layer; on failure `where` is the first.

    The bound is 2, times what `control` says already lies between the two libraries: the errors of
    a plain matmul on each side. An error below a quarter of a machine epsilon counts as that.

    Raises:
        ValueError: the sides hold other tensors, or none.
    """
    if not (set(truth) == set(one) == set(other)) or not truth:
        raise ValueError(f"{name}: the twins do not hold the same tensors")
    layers: dict[str, list[str]] = {}
    for key in truth:
        layers.setdefault(_layer_of(key), []).append(key)
    floor = machine_epsilon(dtype) / 4
    measured: dict[str, tuple[float, float]] = {}
    for layer, keys in layers.items():
        errors = max(pool(one, truth, keys), floor), max(pool(other, truth, keys), floor)
        # Both ways, each with its own bound; kept is the way that comes closer to it.
        ways = [
            (errors[a] / errors[b], RATIO_BOUND * max(1.0, control[a] / control[b]))
            for a, b in ((0, 1), (1, 0))
        ]
        measured[layer] = max(ways, key=lambda way: way[0] / way[1])
    past = [layer for layer, (value, bound) in measured.items() if not value <= bound]
    worst = max(measured, key=lambda layer: measured[layer][0] / measured[layer][1])
    value, bound = measured[worst]
    compared = sum(int(array.size) for array in truth.values())
    where = past[0] if past else worst
    return Check(name, dtype, device, compared, value, bound, not past, where)


def _layer_of(name: str) -> str:
    """`model.layers.3` for everything in that layer, `model` for what stands around the layers."""
    parts = name.split(".")
    return ".".join(parts[:3]) if parts[:2] == ["model", "layers"] else parts[0]
