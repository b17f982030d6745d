"""Distances between arrays, against their definitions, and nothing that passes vacuously."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from parity.check.measures import (
    TensorError,
    agreement,
    kl_divergence,
    pooled_gradients,
    pooled_outputs,
    position_errors,
    relative_l2,
    tensor_error,
)


def logits(rows: int = 70, columns: int = 40, scale: float = 3.0) -> Any:
    return np.random.default_rng(0).normal(size=(rows, columns)) * scale


def test_a_tensor_error_has_the_norms_and_the_worst_element() -> None:
    truth = np.arange(1.0, 13.0).reshape(3, 4)
    value = truth.copy()
    value[0, 3] += 0.25
    value[2, 1] -= 0.5
    error = tensor_error("x", value, truth, "torch")
    assert error == TensorError("x", "torch", math.sqrt(0.3125), np.linalg.norm(truth), 0.5, (2, 1))
    assert error.relative_l2 == pytest.approx(math.sqrt(0.3125 / (truth**2).sum()))
    assert relative_l2(truth.astype(np.float32), truth) == 0


def test_bfloat16_is_compared_in_float64() -> None:
    truth = np.array([1.0, 1.0 + 2**-9])
    assert relative_l2(truth.astype(ml_dtypes.bfloat16), truth) == pytest.approx(
        2**-9 / np.linalg.norm(truth)
    )


def test_nothing_vacuous_passes() -> None:
    some, zero, nan = np.ones(3), np.zeros(3), np.array([1.0, np.nan, 1.0])
    for truth in (zero, nan, np.ones(0)):
        with pytest.raises(ValueError, match=r"nothing to compare|nothing can be told"):
            relative_l2(truth, truth)
        with pytest.raises(ValueError, match=r"nothing to compare|nothing can be told"):
            position_errors(truth[None], truth[None])
    for values in (np.ones((3, 1)), np.ones(4)):
        with pytest.raises(ValueError, match="shape"):
            relative_l2(some, values)
    with pytest.raises(ValueError, match="shape"):
        position_errors(np.ones((2, 3)), np.ones((3, 2)))
    error = tensor_error("x", nan, some)
    assert (error.relative_l2, error.index) == (math.inf, (1,))
    assert relative_l2(np.array([1.0, -np.inf, 1.0]), some) == math.inf
    with pytest.raises(ValueError, match=r"row 1 of the logits has a norm of 0\.0"):
        position_errors(np.ones((2, 2)), np.array([[1.0, 1.0], [0.0, 0.0]]))


def test_pools_are_what_they_say() -> None:
    errors = [
        tensor_error("a", np.full(4, 1.1), np.ones(4)),
        tensor_error("b", np.full(4, 100.0), np.full(4, 100.0)),
    ]
    assert pooled_outputs(errors) == pytest.approx(0.1 / np.sqrt(2))
    assert pooled_gradients(errors) == pytest.approx(np.sqrt(4 * 0.01) / np.sqrt(4 + 4e4))
    lost = tensor_error("c", np.array([np.nan]), np.ones(1))
    assert pooled_outputs([*errors, lost]) == pooled_gradients([*errors, lost]) == math.inf


def test_position_errors_are_the_error_of_each_row() -> None:
    truth = logits()
    value = truth + np.random.default_rng(1).normal(size=truth.shape) * 1e-3
    value[67, 3] = np.nan
    expected = [relative_l2(a, b) for a, b in zip(value, truth, strict=True)]
    assert expected[67] == math.inf
    np.testing.assert_allclose(position_errors(value, truth), expected, rtol=1e-12)


@pytest.mark.parametrize("noise", [1e-3, 0.5, 5.0, 300.0])
def test_kl_is_that_of_torch(noise: float) -> None:
    truth = logits()
    found = truth + np.random.default_rng(1).normal(size=truth.shape) * noise
    one, other = (torch.from_numpy(x).log_softmax(dim=1) for x in (truth, found))
    expected = torch.nn.functional.kl_div(other, one, reduction="none", log_target=True).sum(1)
    np.testing.assert_allclose(kl_divergence(truth, found), expected, rtol=1e-9, atol=1e-13)


def test_kl_of_two_that_differ_by_rounding_is_not_the_rounding_of_a_sum() -> None:
    """To second order it is half the variance of the difference, here 1e-28 and not 1e-16."""
    truth = logits(rows=5)
    difference = np.random.default_rng(1).normal(size=truth.shape) * 1e-9
    p = np.exp(truth) / np.exp(truth).sum(axis=1, keepdims=True)
    mean = (p * difference).sum(axis=1, keepdims=True)
    expected = (p * (difference - mean) ** 2).sum(axis=1) / 2
    np.testing.assert_allclose(kl_divergence(truth, truth + difference), expected, rtol=1e-4)
    assert (kl_divergence(truth, truth) == 0).all()


def test_agreement_counts_tokens_and_names_the_worst() -> None:
    truth = np.tile(np.arange(8.0), (4, 1))  # the best five are 3 .. 7
    found = truth.copy()
    found[1, [7, 6]] = found[1, [6, 7]]  # another favourite, the same five
    found[2, [3, 0]] = found[2, [0, 3]]  # the same favourite, one of five lost
    one = agreement("flax", found, truth, lambda index: f"token {index}")
    assert (one.side, one.tokens, one.top1, one.top5) == ("flax", 4, 3 / 4, 19 / 20)
    assert (one.worst, one.worst_error) == ("token 2", relative_l2(found[2], truth[2]))
    each = kl_divergence(truth, found)
    assert (one.kl_max, one.kl_mean) == (each.max(), each.mean())
    assert one.kl_max == each[1] > each[2] > each[0] == 0


def test_agreement_of_few_words_and_of_what_is_no_number() -> None:
    truth = np.array([[1.0, 2.0], [1.0, 3.0]])
    assert agreement("torch", truth, truth, str).top5 == 1
    found = np.array([[1.0, 2.0], [np.nan, 3.0]])
    one = agreement("torch", found, truth, str)
    assert one.kl_max == one.kl_mean == one.worst_error == math.inf
    assert one.worst == "1"
