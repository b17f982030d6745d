"""The control of the rounding checks: how exact a plain matmul of each framework is.

Libraries add up in different orders. On one CPU a float32 product with 1536 terms was off by
2.5e-7 in PyTorch and by 7.0e-7 in JAX, whatever model stands around it: what is allowed between the
twins is measured in what already lies between their libraries.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import torch

from diy_core.config import DIYConfig
from diy_torch.tensors import to_numpy
from parity.check.measures import machine_epsilon, relative_l2
from parity.environment import TORCH_DTYPES, Device

ROWS, COLUMNS = 128, 256


def allowance(config: DIYConfig, dtype: str, device: Device) -> tuple[float, float]:
    """How much less exact a plain matmul is in PyTorch than in JAX, and in JAX than in PyTorch.

    Each is the largest ratio of the two errors over the numbers of terms that matmuls of this model
    sum (the vocabulary among them: the gradient of the logits does), and at least 1. Random normal
    operands, the truth in float64; an error below a quarter of a machine epsilon (that of a
    correctly rounded result) counts as that.
    """
    floor = machine_epsilon(dtype) / 4
    inner = config.num_attention_heads * config.head_size
    ratios = [1.0]
    for terms in {config.hidden_size, config.intermediate_size, inner, config.vocab_size}:
        one, other = (max(error, floor) for error in _matmul_errors(terms, dtype, device))
        ratios.append(one / other)
    return max(ratios), max(1 / ratio for ratio in ratios)


def _matmul_errors(terms: int, dtype: str, device: Device) -> tuple[float, float]:
    """The relative L2 error of one matmul with so many terms, in PyTorch and in JAX."""
    generator = np.random.default_rng(0)
    left = jnp.asarray(generator.standard_normal((ROWS, terms)), jnp.dtype(dtype))
    right = jnp.asarray(generator.standard_normal((terms, COLUMNS)), jnp.dtype(dtype))
    one, other = (np.asarray(side).astype(np.float64) for side in (left, right))
    truth = one @ other
    place, kind = device.torch, TORCH_DTYPES[dtype]
    product = torch.from_numpy(one).to(place, kind) @ torch.from_numpy(other).to(place, kind)
    return (
        relative_l2(to_numpy(product), truth),
        relative_l2(np.asarray(jnp.matmul(left, right)), truth),
    )
