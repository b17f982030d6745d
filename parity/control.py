"""The control of the rounding checks: how far one plain matmul of each framework is from exact.

Libraries add up in different orders. On one CPU a float32 product with 1536 terms was off by
2.5e-7 in PyTorch and 7.0e-7 in JAX, whatever model stands around it; errors below that tell
nothing about the model.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import torch

from diy_core.config import DIYConfig
from diy_torch.checkpoint import to_numpy
from parity.environment import TORCH_DTYPES, Device
from parity.metrics import machine_epsilon, relative_l2

ROWS, COLUMNS = 128, 256


def rounding_floor(config: DIYConfig, dtype: str, device: Device) -> float:
    """The error that no model of this config can be asked to stay under.

    That is the larger error of one matmul in either framework, over as many terms as the widest
    projection of the model sums, and at least a quarter of a machine epsilon: what a correctly
    rounded tensor has.
    """
    terms = max(
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads * config.head_size,
    )
    generator = np.random.default_rng(0)
    left = jnp.asarray(generator.standard_normal((ROWS, terms)), jnp.dtype(dtype))
    right = jnp.asarray(generator.standard_normal((terms, COLUMNS)), jnp.dtype(dtype))
    one, other = (np.asarray(side).astype(np.float64) for side in (left, right))
    truth = one @ other
    place, kind = device.torch, TORCH_DTYPES[dtype]
    product = torch.from_numpy(one).to(place, kind) @ torch.from_numpy(other).to(place, kind)
    return max(
        relative_l2(to_numpy(product), truth),
        relative_l2(np.asarray(jnp.matmul(left, right)), truth),
        machine_epsilon(dtype) / 4,
    )
