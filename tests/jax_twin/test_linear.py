"""The linear layer against numpy, and its gradients in bfloat16 against exact sums."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diy_jax.linear import Linear
from diy_jax.norm import RMSNorm

TOKENS = 10_000


def layer(use_bias: bool, dtype: Any) -> Linear:
    return Linear(5, use_bias=use_bias, dtype=dtype, param_dtype=jnp.float32, std=0.1)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("use_bias", [True, False])
def test_it_is_x_times_kernel_plus_bias(use_bias: bool) -> None:
    generator = np.random.default_rng(0)
    x, kernel, bias = (generator.standard_normal(s, np.float32) for s in ((2, 3, 4), (4, 5), (5,)))
    params = {"kernel": jnp.asarray(kernel)} | ({"bias": jnp.asarray(bias)} if use_bias else {})
    found = layer(use_bias, jnp.float32).apply({"params": params}, jnp.asarray(x))
    expected = x.astype(np.float64) @ kernel + (bias if use_bias else 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_it_has_the_parameters_of_flax_dense() -> None:
    drawn = layer(True, jnp.float32).init(jax.random.key(0), jnp.ones((1, 2, 4)))["params"]
    assert {name: value.shape for name, value in drawn.items()} == {"kernel": (4, 5), "bias": (5,)}
    assert not drawn["bias"].any()
    assert 0.05 < float(jnp.std(drawn["kernel"])) < 0.2


def weighted() -> tuple[Any, Any]:
    """Random bfloat16 weights (1, TOKENS, 5) and their exact sums over the tokens."""
    weights = np.random.default_rng(1).uniform(0, 1, (1, TOKENS, 5))
    rounded = jnp.asarray(weights, jnp.bfloat16)
    return rounded, np.asarray(rounded).astype(np.float64).sum(axis=(0, 1))


# Summed in bfloat16, these gradients were off by 4% under `jit`; the weights' own sum is exact.
def test_the_gradient_of_a_bfloat16_bias_is_summed_in_float32() -> None:
    weights, expected = weighted()
    params = {"kernel": jnp.zeros((4, 5)), "bias": jnp.zeros(5)}
    x = jnp.ones((1, TOKENS, 4), jnp.bfloat16)

    def total(params: Any, weights: Any) -> Any:
        y = layer(True, jnp.bfloat16).apply({"params": params}, x)
        return (y * weights).astype(jnp.float32).sum()

    found = jax.jit(jax.grad(total))(params, weights)["bias"]
    np.testing.assert_allclose(found, expected, rtol=5e-3)


def test_the_gradient_of_a_bfloat16_norm_scale_is_summed_in_float32() -> None:
    weights, expected = weighted()
    x = jnp.ones((1, TOKENS, 5), jnp.bfloat16)

    def total(scale: Any, weights: Any) -> Any:
        y = RMSNorm(5, eps=0.0).apply({"params": {"scale": scale}}, x)
        return (y * weights).astype(jnp.float32).sum()

    found = jax.jit(jax.grad(total))(jnp.ones(5), weights)
    np.testing.assert_allclose(found, expected, rtol=5e-3)
