"""The gated feed-forward layer."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from diy_core.config import DIYConfig
from diy_jax.linear import Linear


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)).

    silu is computed in float32 and cast back, since frameworks disagree about it in bfloat16.

    Source: Shazeer, arXiv:2002.05202.
    """

    config: DIYConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """The three projections."""
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        linear = partial(
            Linear,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            use_bias=self.config.mlp_bias,
            std=self.config.initializer_range,
        )
        self.gate_proj = linear(inner)
        self.up_proj = linear(inner)
        self.down_proj = linear(hidden)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Apply the layer to each position alone."""
        gate = self.gate_proj(x)
        wide = gate.astype(np.promote_types(gate.dtype, jnp.float32))
        return self.down_proj(nn.silu(wide).astype(gate.dtype) * self.up_proj(x))
