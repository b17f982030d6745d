from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from diy_jax import RMSNorm
from parity.check.measures import relative_l2
from tests.oracles import Array, rms_norm

pytestmark = pytest.mark.usefixtures("strict", "x64")


def apply(x: Array, weight: Array, eps: float) -> Array:
    norm = RMSNorm(x.shape[-1], eps, param_dtype=weight.dtype)
    return np.array(norm.apply({"params": {"scale": jnp.asarray(weight)}}, jnp.asarray(x)))


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 3, 8)])
def test_it_is_the_formula(shape: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    x, weight = generator.normal(size=shape), generator.uniform(0.5, 1.5, shape[-1])
    assert relative_l2(apply(x, weight, 1e-5), rms_norm(x, weight, 1e-5)) <= 1e-15


def test_eps_is_added_to_the_mean_square() -> None:
    assert apply(np.full(4, 3.0), np.ones(4), eps=16.0).tolist() == pytest.approx([0.6] * 4, 1e-15)
    assert apply(np.full(4, 3.0), np.ones(4), eps=0.0).tolist() == pytest.approx([1.0] * 4, 1e-15)


def test_zeros_stay_zeros() -> None:
    assert apply(np.zeros(4), np.ones(4), eps=1e-5).tolist() == [0.0] * 4


def test_eps_is_1e_5_unless_said_otherwise() -> None:
    tiny_values = np.full(4, 1e-3)
    expected = rms_norm(tiny_values, np.ones(4), 1e-5)
    result = RMSNorm(4).apply({"params": {"scale": jnp.ones(4)}}, jnp.asarray(tiny_values))
    assert relative_l2(np.array(result), expected) <= 1e-7  # eps decides 5% here


def test_bfloat16_is_normalised_in_float32_then_cast_then_weighted() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 32)).astype(ml_dtypes.bfloat16)
    weight = generator.uniform(0.5, 1.5, 32).astype(ml_dtypes.bfloat16)
    normalised = rms_norm(x.astype(np.float64), np.ones(32), 1e-5).astype(np.float32)
    expected = normalised.astype(ml_dtypes.bfloat16) * weight
    weighted_before_the_cast = (normalised * weight.astype(np.float32)).astype(ml_dtypes.bfloat16)
    result = apply(x, weight, 1e-5)
    assert (result == expected).all()
    assert (result != weighted_before_the_cast).mean() > 0.05


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_dtype_stays(dtype: Any) -> None:
    params = {"scale": jnp.ones(4, jnp.float32)}
    assert RMSNorm(4).apply({"params": params}, jnp.ones((2, 4), dtype)).dtype == dtype
