from __future__ import annotations

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from diy_jax.feedforward import FeedForward
from parity.check.measures import relative_l2
from tests.jax_twin.build import build
from tests.oracles import CONFIGS, NumpyModel, random_weights, silu, tiny

pytestmark = pytest.mark.usefixtures("strict", "x64")


@pytest.mark.parametrize("name", ["gqa", "biases"])
def test_it_is_the_formula(name: str) -> None:
    config = CONFIGS[name]
    x = np.random.default_rng(1).normal(size=(2, 3, config.hidden_size))
    oracle = NumpyModel(config, random_weights(config))
    params = build(config).params["model"]["layers_1"]["feedforward"]
    layer = FeedForward(config, jnp.float64, jnp.float64)
    output = np.array(layer.apply({"params": params}, jnp.asarray(x)))
    assert relative_l2(output, oracle.feedforward("model.layers.1.mlp", x)) <= 1e-12


def test_bfloat16_silu_is_computed_in_float32_then_cast() -> None:
    layer = FeedForward(tiny(intermediate_size=16), jnp.bfloat16, jnp.bfloat16)
    names = ("gate_proj", "up_proj", "down_proj")
    params = {name: {"kernel": jnp.eye(16, dtype=jnp.bfloat16)} for name in names}
    x = np.random.default_rng(0).normal(size=(1, 64, 16)).astype(ml_dtypes.bfloat16)
    output = np.array(layer.apply({"params": params}, jnp.asarray(x)))
    activated = silu(x.astype(np.float64))
    assert (output == activated.astype(ml_dtypes.bfloat16) * x).all()
    not_cast_between = (activated * x.astype(np.float64)).astype(ml_dtypes.bfloat16)
    assert (output != not_cast_between).mean() > 0.05
