"""Norms of values whose squares are too large or too small for float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diy_core.norms import norm, norms, power_of_two, scales_of


@pytest.mark.parametrize("scale", [1e300, 1e160, 1.0, 1e-150, 1e-200, 1e-306])
def test_a_norm_neither_overflows_nor_vanishes(scale: float) -> None:
    values = np.array([3.0, -4.0, 0.0, 12.0]) * scale
    assert norm(values) == pytest.approx(13 * scale, rel=1e-15)
    assert norms(np.stack([values, values / scale])) == pytest.approx([13 * scale, 13], rel=1e-15)


def test_the_smallest_and_the_largest_numbers_have_norms() -> None:
    assert norm(np.array([5e-324])) == 5e-324
    assert norm(np.array([np.finfo(np.float64).max])) == np.finfo(np.float64).max
    assert norm(np.full(4, np.finfo(np.float64).max)) == math.inf  # twice that is not a number


@pytest.mark.parametrize(
    ("values", "expected"),
    [([], 0.0), ([0.0, -0.0], 0.0), ([math.inf, 1], math.inf), ([1e300, -math.inf], math.inf)],
)
def test_norms_at_the_edges(values: list[float], expected: float) -> None:
    assert norm(np.array(values)) == expected


def test_what_is_not_a_number_has_no_norm() -> None:
    assert math.isnan(norm(np.array([math.nan, 1.0])))


@pytest.mark.parametrize("value", [5e-324, 1e-310, 1e-5, 1.0, 1e200, 1.7e308])
def test_a_power_of_two_brings_the_largest_near_1_and_back(value: float) -> None:
    scale = power_of_two(np.array([value / 2, value]), np.array([0.0]))
    assert math.frexp(scale)[0] == 0.5
    assert 1e-2 < value * scale < 4 or value < 1e-306
    assert value * scale / scale == value
    assert 1 / scale < math.inf


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_scales_of_a_type_bring_its_norms_to_where_no_square_is_lost(dtype: type) -> None:
    limits = np.finfo(dtype)
    scales = scales_of(float(limits.max))
    assert all(math.frexp(scale)[0] == 0.5 for scale in scales)
    # 2^36 numbers that are just too small to be squared are nothing beside the least norm.
    assert 2.0**36 * float(limits.tiny) < scales.least**2 * float(limits.eps)
    assert float(limits.smallest_subnormal) * scales.up > math.sqrt(limits.tiny)
    assert scales.least * scales.up < math.sqrt(limits.max)
    assert float(limits.max) * scales.down < math.sqrt(limits.max)
