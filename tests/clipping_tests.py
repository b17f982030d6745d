"""What clipping has to do with gradients of any size, against float64.

The same for both twins, each of which gives its own `clip`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.oracles import Array


def gradients_like(*sizes: float, dtype: str = "float32") -> list[Array]:
    """One matrix of each size, and a vector of the first."""
    generator = np.random.default_rng(0)
    shapes = [(5, 7), (3, 11), (4, 2)][: len(sizes)]
    drawn = [generator.normal(0.0, s, shape) for s, shape in zip(sizes, shapes, strict=True)]
    return [array.astype(dtype) for array in (*drawn, generator.normal(0.0, sizes[0], 6))]


def norm_of(gradients: Sequence[Array]) -> np.longdouble:
    """In a wider type, in which no square of a float64 overflows or vanishes."""
    wide = [array.astype(np.longdouble) for array in gradients]
    return np.sqrt(sum((array**2).sum() for array in wide))


class ClippingTests:
    """To be inherited from."""

    def clip(self, gradients: Sequence[Array], max_norm: float) -> tuple[list[Array], Any]:
        """The clipped gradients and their norm before."""
        raise NotImplementedError

    def can_be_squared(self, norm: Any, max_norm: float) -> bool:
        raise NotImplementedError

    @pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e-3])
    @pytest.mark.parametrize(
        "sizes",
        [
            (1e37,),
            (1e20,),
            (1e19, 1e19, 1e19),  # each square is finite, and not their sum
            (1e20, 1.0, 1e-25),
            (1e9, 1e-9),
            (1e-9,),
            (1e-12, 1e-20),
            (1e-20, 1e-23, 1e-25),
            (1e-25,),
            (1e-36,),
        ],
        ids=str,
    )
    def test_the_norm_neither_overflows_nor_vanishes(
        self, sizes: tuple[float, ...], max_norm: float
    ) -> None:
        self._is_right(gradients_like(*sizes), max_norm, 1e-6)

    @pytest.mark.parametrize("size", [1e300, 1e154, 1e-154, 1e-200, 1e-303])
    def test_nor_in_float64(self, size: float) -> None:
        self._is_right(gradients_like(size, size, dtype="float64"), 0.5, 1e-14)

    def _is_right(self, given: list[Array], max_norm: float, bound: float) -> None:
        wanted = norm_of(given)
        found, norm = self.clip([array.copy() for array in given], max_norm)
        assert norm.dtype == given[0].dtype
        assert float(norm / wanted) == pytest.approx(1, rel=bound)
        factor = min(1, max_norm / (wanted + 1e-6)) if max_norm else 1
        for one, array in zip(found, given, strict=True):
            assert one.dtype == array.dtype
            # What is below the smallest number of the type may be 0.
            least = 2 * float(np.finfo(array.dtype).tiny)
            np.testing.assert_allclose(one, array * factor, rtol=bound, atol=least)

    def test_gradients_of_zero_stay_so(self) -> None:
        found, norm = self.clip([np.zeros((3, 2), np.float32), np.zeros(4, np.float32)], 1.0)
        assert norm == 0
        assert not any(array.any() for array in found)

    @pytest.mark.parametrize(
        ("value", "expected"), [(np.inf, np.inf), (-np.inf, np.inf), (np.nan, np.nan)]
    )
    @pytest.mark.parametrize("size", [1e20, 1.0, 1e-25])
    def test_what_is_not_finite_has_no_finite_norm(
        self, value: float, expected: float, size: float
    ) -> None:
        given = gradients_like(size, size)
        given[1][2, 3] = value
        np.testing.assert_equal(float(self.clip(given, 1.0)[1]), expected)

    def test_a_norm_beyond_the_largest_number_is_infinite(self) -> None:
        given = [np.full((4, 4), np.finfo(np.float32).max)]
        assert self.clip(given, 1.0)[1] == np.inf

    @pytest.mark.parametrize(
        ("norm", "max_norm", "expected"),
        [(1.8e19, 0.0, True), (1.9e19, 0.0, False), (3e38, 1.0, True), (3e38, 1e20, False)],
    )
    def test_what_adamw_can_square(self, norm: float, max_norm: float, expected: bool) -> None:
        assert self.can_be_squared(np.float32(norm), max_norm) is expected
