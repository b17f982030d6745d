from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from diy_torch.feedforward import FeedForward
from diy_torch.tensors import to_numpy, to_tensor
from parity.check.measures import relative_l2
from tests.oracles import CONFIGS, NumpyModel, random_weights, silu, tiny
from tests.torch_twin.build import build


@pytest.mark.parametrize("name", ["gqa", "biases"])
def test_it_is_the_formula(name: str) -> None:
    config = CONFIGS[name]
    x = np.random.default_rng(1).normal(size=(2, 3, config.hidden_size))
    oracle = NumpyModel(config, random_weights(config))
    with torch.no_grad():
        output = build(config).model.layers[1].feedforward(torch.from_numpy(x)).numpy()
    assert relative_l2(output, oracle.feedforward("model.layers.1.mlp", x)) <= 1e-12


def test_bfloat16_silu_is_computed_in_float32_then_cast() -> None:
    layer = FeedForward(tiny(intermediate_size=16)).to(torch.bfloat16)
    for name in ("gate_proj", "up_proj", "down_proj"):
        getattr(layer, name).weight = torch.nn.Parameter(torch.eye(16, dtype=torch.bfloat16))
    x = np.random.default_rng(0).normal(size=(1, 64, 16)).astype(ml_dtypes.bfloat16)
    with torch.no_grad():
        output = to_numpy(layer(to_tensor(x)))
    activated = silu(x.astype(np.float64))
    assert (output == activated.astype(ml_dtypes.bfloat16) * x).all()
    not_cast_between = (activated * x.astype(np.float64)).astype(ml_dtypes.bfloat16)
    assert (output != not_cast_between).mean() > 0.05
