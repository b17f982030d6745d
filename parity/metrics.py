"""How far two arrays are apart, in float64, never vacuously."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def relative_l2(value: NDArray[Any], truth: NDArray[Any]) -> float:
    """|value - truth| / |truth|, both as vectors.

    Returns:
        The error; infinity where `value` is not finite.

    Raises:
        ValueError: shapes differ, nothing to compare, or a truth that is zero or not finite:
            against such a truth a check would prove nothing.
    """
    if value.shape != truth.shape:
        raise ValueError(f"cannot compare shape {value.shape} with {truth.shape}")
    if truth.size == 0:
        raise ValueError("nothing to compare: the arrays are empty")
    size = float(np.linalg.norm(truth.astype(np.float64, copy=False).ravel()))
    if not math.isfinite(size) or size == 0:
        raise ValueError(f"the reference is no reference: its norm is {size}")
    difference = value.astype(np.float64, copy=False) - truth
    error = float(np.linalg.norm(difference.ravel())) / size
    return error if math.isfinite(error) else math.inf


Arrays = Mapping[str, NDArray[Any]]
Pool = Callable[[Arrays, Arrays, Sequence[str]], float]


def pooled_outputs(values: Arrays, truths: Arrays, names: Sequence[str]) -> float:
    """One error for the outputs of several modules: the root mean square of their relative errors.

    So that no output drowns beside a larger one. Raises as `relative_l2` does.
    """
    errors = [relative_l2(values[name], truths[name]) for name in names]
    return math.sqrt(sum(error * error for error in errors) / len(errors))


def pooled_gradients(values: Arrays, truths: Arrays, names: Sequence[str]) -> float:
    """One error for several gradients: |values - truths| / |truths|, all of them as one vector.

    A gradient that is nearly zero by cancellation (that of a key's bias: softmax does not see a
    shift of all scores) is all rounding error; here it weighs as little as it is. Raises as
    `relative_l2` does.
    """
    return relative_l2(
        np.concatenate([values[name].ravel() for name in names]),
        np.concatenate([truths[name].ravel() for name in names]),
    )


def machine_epsilon(dtype: str) -> float:
    """The distance from 1 to the next number of this dtype."""
    return {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}[
        dtype
    ]
