"""How far two arrays are apart, in float64, never vacuously."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.norms import norm, norms

BEST = 5  # of top-5 agreement
_ROWS = 64  # tokens at a time, so that a large vocabulary needs little memory


class NothingProven(ValueError):
    """A comparison that would pass or fail whatever the twins compute."""


@dataclasses.dataclass(frozen=True)
class TensorError:
    """How far one tensor is from its reference.

    Attributes:
        name: of the tensor or module.
        side: whose tensor it is, `torch` or `flax`.
        difference: |value - truth|, as vectors.
        size: |truth|.
        largest: the largest |value - truth| of a single element.
        index: where that is, in the shape of the tensor.
    """

    name: str
    side: str
    difference: float
    size: float
    largest: float
    index: tuple[int, ...]

    @property
    def relative_l2(self) -> float:
        """|value - truth| / |truth|; infinity where the value is not finite."""
        error = self.difference / self.size if self.size else math.inf
        return error if math.isfinite(error) else math.inf


def tensor_error(
    name: str, value: NDArray[Any], truth: NDArray[Any], side: str = "flax"
) -> TensorError:
    """Compare a tensor with its reference.

    Raises:
        ValueError: shapes differ.
        NothingProven: nothing to compare, or a truth that is zero or not finite.
    """
    if value.shape != truth.shape:
        raise ValueError(f"cannot compare shape {value.shape} with {truth.shape}")
    if truth.size == 0:
        raise NothingProven(f"{name or 'the array'} is empty: there is nothing to compare")
    size = norm(truth)
    if not math.isfinite(size) or size == 0:
        raise NothingProven(
            f"{name or 'the array'} has a norm of {size} in the reference: nothing can be told "
            "from a comparison with it"
        )
    with np.errstate(invalid="ignore", over="ignore"):
        difference = (value.astype(np.float64, copy=False) - truth).ravel()
        # The first that is not a number, if there is one, is the largest and the smallest.
        places = int(difference.argmax()), int(difference.argmin())
        place = max(places, key=lambda i: abs(difference[i]))
        distance = norm(difference)
    index = tuple(int(i) for i in np.unravel_index(place, truth.shape))
    return TensorError(name, side, distance, size, float(abs(difference[place])), index)


def relative_l2(value: NDArray[Any], truth: NDArray[Any]) -> float:
    """|value - truth| / |truth|, both as vectors; infinity where `value` is not finite.

    Raises as `tensor_error` does.
    """
    return tensor_error("", value, truth).relative_l2


Pool = Callable[[Sequence[TensorError]], float]


def pooled_outputs(errors: Sequence[TensorError]) -> float:
    """One error for the outputs of several modules: the root mean square of their relative errors.

    So that no output drowns beside a larger one.
    """
    return math.sqrt(sum(error.relative_l2**2 for error in errors) / len(errors))


def pooled_gradients(errors: Sequence[TensorError]) -> float:
    """One error for several gradients: |values - truths| / |truths|, all of them as one vector.

    A gradient that is nearly zero by cancellation (that of a key's bias: softmax does not see a
    shift of all scores) is all rounding error; here it weighs as little as it is.
    """
    error = math.hypot(*(e.difference for e in errors)) / math.hypot(*(e.size for e in errors))
    return error if math.isfinite(error) else math.inf


def position_errors(values: NDArray[Any], truths: NDArray[Any]) -> NDArray[np.float64]:
    """Relative L2 of each row of two matrices, (rows,): of logits, of each position.

    Infinite where a value is not finite; raises as `tensor_error` does, for any row.
    """
    if values.shape != truths.shape:
        raise ValueError(f"cannot compare shape {values.shape} with {truths.shape}")
    if truths.size == 0:
        raise NothingProven("the arrays are empty: there is nothing to compare")
    errors = np.empty(len(truths))
    for start in range(0, len(truths), _ROWS):
        rows = slice(start, start + _ROWS)
        truth = truths[rows].astype(np.float64, copy=False)
        sizes = norms(truth)
        if not (useful := np.isfinite(sizes) & (sizes > 0)).all():
            row = start + int(np.argmin(useful))
            raise NothingProven(
                f"row {row} of the logits has a norm of {sizes[row - start]} in the reference: "
                "nothing can be told from a comparison with it"
            )
        with np.errstate(invalid="ignore", over="ignore"):
            difference = values[rows].astype(np.float64, copy=False) - truth
            errors[rows] = norms(difference) / sizes
    return np.where(np.isfinite(errors), errors, np.inf)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How well two models' logits agree as predictions, over the tokens of a batch.

    Attributes:
        side: whose logits are held against the reference.
        tokens: how many positions were compared.
        kl_max: the largest Kullback-Leibler divergence of a single token's distribution, in nats,
            from the reference's; never averaged over the vocabulary, which would hide it.
        kl_mean: its mean over the tokens.
        top1: share of the tokens at which both like the same next token best.
        top5: share of the reference's five best that are among the other's five best.
        worst: the row and position whose logits are furthest from the reference.
        worst_error: the relative L2 there.
    """

    side: str
    tokens: int
    kl_max: float
    kl_mean: float
    top1: float
    top5: float
    worst: str
    worst_error: float


def agreement(
    side: str, values: NDArray[Any], truths: NDArray[Any], place: Callable[[int], str]
) -> Agreement:
    """Compare logits (tokens, V) as predictions; `place` names the index-th token.

    Raises as `tensor_error` does.
    """
    errors = position_errors(values, truths)
    divergences, first, best = [], 0, 0
    for start in range(0, len(truths), _ROWS):
        found = values[start : start + _ROWS].astype(np.float64)
        truth = truths[start : start + _ROWS].astype(np.float64)
        divergences.append(kl_divergence(truth, found))
        first += int((found.argmax(axis=1) == truth.argmax(axis=1)).sum())
        for one, other in zip(_best(truth), _best(found), strict=True):
            best += len(set(one) & set(other))
    every = np.concatenate(divergences)
    count, worst = len(truths), int(errors.argmax())
    return Agreement(
        side=side,
        tokens=count,
        kl_max=float(every.max()),
        kl_mean=float(every.mean()),
        top1=first / count,
        top5=best / (count * min(BEST, truths.shape[1])),
        worst=place(worst),
        worst_error=float(errors[worst]),
    )


def kl_divergence(truth: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL(softmax(truth) || softmax(found)) of each row, in nats, (rows,); infinite if not finite.

    Summed as p (d + exp(-d) - 1) with d = log p - log q, which is p log(p/q) but for terms that
    cancel over the vocabulary: each is at least 0, and two rows that differ by 1e-15 give 1e-30
    instead of the rounding error of a sum that should be zero.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        one, other = _log_softmax(truth), _log_softmax(found)
        p, d = np.exp(one), one - other
        near = p * (d + np.expm1(-np.clip(d, -1, 1)))
        far = p * d - p + np.exp(other)
        sums = np.where(np.abs(d) < 1, near, far).sum(axis=1)
    return np.where(np.isfinite(sums), np.maximum(sums, 0.0), np.inf)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _best(logits: NDArray[np.float64]) -> NDArray[np.intp]:
    """The indices of each row's largest values, in no order."""
    count = min(BEST, logits.shape[1])
    return np.argpartition(-logits, count - 1, axis=1)[:, :count]


def machine_epsilon(dtype: str) -> float:
    """The distance from 1 to the next number of this dtype."""
    return {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}[
        dtype
    ]
