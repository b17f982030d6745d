"""How far two calls' arrays are apart."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from parity.tracing.compare.errors import compare, not_finite, precision, relative_error, worst

GENERATOR = np.random.default_rng(0)


def normal(*shape: int) -> Any:
    return GENERATOR.normal(size=shape)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4), (700, 800)])  # the second in more than one part
def test_the_error_is_that_of_the_norms(shape: tuple[int, ...], dtype: Any) -> None:
    one, other = normal(*shape).astype(dtype), normal(*shape).astype(dtype)
    wide, wide_2 = one.astype(np.float64), other.astype(np.float64)
    size = max(np.linalg.norm(wide), np.linalg.norm(wide_2))
    expected = np.linalg.norm(wide - wide_2) / size
    assert relative_error(one, other) == pytest.approx(expected, rel=1e-12)
    assert relative_error(one, one.copy()) == 0
    # The layout in memory says nothing.
    assert relative_error(one.T, other.T) == pytest.approx(expected, rel=1e-12)


def test_numbers_whose_squares_are_too_large_or_too_small() -> None:
    one = np.array([3.0, 4.0])
    for scale in (1e200, 1e-200, 4e307, 1e-318):
        assert relative_error(one * scale, one * scale / 2) == pytest.approx(0.5, rel=1e-3)
    assert relative_error(np.array([1e308]), np.array([-1e308])) == pytest.approx(2)


def test_zeros() -> None:
    assert relative_error(np.zeros(3), np.zeros(3)) == 0
    assert relative_error(np.zeros(3), np.ones(3)) == 1
    assert relative_error(np.zeros(0), np.zeros(0)) == 0


def test_integers_and_booleans_are_equal_or_not() -> None:
    assert relative_error(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5], np.int32)) == 0.25
    assert relative_error(np.array([True]), np.array([True])) == 0


def test_what_is_no_number() -> None:
    one, nan = np.array([1.0, 2.0, 3.0]), np.array([1.0, np.nan, 3.0])
    far = np.array([1.0, 2.0, np.inf])
    assert relative_error(one, nan) == relative_error(nan, one) == math.inf
    assert relative_error(one, far) == relative_error(nan, far) == math.inf
    assert relative_error(nan, nan.copy()) == 0
    assert relative_error(nan, np.array([1.0, np.nan, 4.0])) == pytest.approx(1 / 17**0.5)
    assert not_finite(one, nan, math.inf) == "the Flax side only"
    assert not_finite(far, one, math.inf) == "the PyTorch side only"
    assert not_finite(nan, far, math.inf) == "both sides, at other places"
    assert not_finite(nan, nan, 0.0) == "both sides"
    assert not_finite(far, far, 0.0) == ""  # a mask
    assert not_finite(one, one, 0.0) == not_finite(np.array([1]), np.array([2]), 1.0) == ""


def test_arrays_are_matched_in_order_where_their_shapes_allow_it() -> None:
    """However unlike they are: two that were exchanged are a fault, not a layout."""
    one = {"0": normal(2, 3), "1": normal(2, 3)}
    found = compare(one, {"a": one["1"], "b": one["0"]}, 1e-11)
    assert [(e.torch, e.flax) for e in found] == [("0", "a"), ("1", "b")]
    assert worst(found) > 0.5


def test_else_by_value_and_what_has_no_partner_is_left_out() -> None:
    hidden, mask = normal(2, 3, 4), np.ones((2, 3), bool)
    one = {"args.0": hidden, "kwargs.other": normal(2, 3, 4), "kwargs.mask": mask}
    other = {"args.0": mask, "args.1": hidden.transpose(1, 2, 0)}
    found = {e.flax: e for e in compare(one, other, 1e-11)}
    assert {name: e.torch for name, e in found.items()} == {
        "args.0": "kwargs.mask",
        "args.1": "args.0",
    }
    assert found["args.1"].operation.axes == (1, 2, 0)
    assert worst(list(found.values())) == 0


def test_the_layout_that_fits_is_found() -> None:
    image = normal(2, 4, 4, 4)  # no shape tells the axes apart
    (found,) = compare({"": image}, {"": image.transpose(0, 2, 3, 1)}, 1e-11)
    assert found.error == 0
    assert found.operation.axes == (0, 2, 3, 1)


def test_where_none_fits_it_is_taken_for_the_same_layout() -> None:
    (found,) = compare({"": normal(4, 4)}, {"": normal(4, 4)}, 1e-11)
    assert found.operation.is_identity
    assert compare({"": normal(4)}, {"": normal(5)}, 1e-11) == []


def test_the_least_precise_dtype_decides() -> None:
    arrays = [normal(2).astype(d) for d in ("float64", "float32", ml_dtypes.bfloat16, "float16")]
    assert precision(*arrays) == "bfloat16"
    assert precision(*arrays[:2]) == "float32"
    assert precision(np.array([1]), arrays[0]) == "float64"
    assert worst([]) == 0


def test_where_no_layout_agrees_that_of_the_inputs_is_taken() -> None:
    """Of square images another one may be a little nearer by chance."""
    one, other = normal(2, 6, 6, 6), normal(2, 6, 6, 6)
    turned = other.transpose(0, 3, 2, 1) + 0.5 * one  # nearest to an order that nobody means
    moved = compare({"": one}, {"": turned}, 1e-12, like={(0, 2, 3, 1)})[0]
    assert moved.operation.axes == (0, 2, 3, 1)
    assert compare({"": one}, {"": turned}, 1e-12)[0].operation.is_identity
    # What does agree, agrees in any layout.
    same = compare({"": one}, {"": one.transpose(0, 3, 2, 1)}, 1e-12, like={(0, 2, 3, 1)})[0]
    assert (same.operation.axes, same.error) == ((0, 3, 2, 1), 0.0)
