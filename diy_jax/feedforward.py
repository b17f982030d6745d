"""The gated feed-forward layer."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from diy_core.config import DIYConfig
from diy_jax.attention import projection


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
        self.gate_proj = projection(self, inner, self.config.mlp_bias)
        self.up_proj = projection(self, inner, self.config.mlp_bias)
        self.down_proj = projection(self, hidden, self.config.mlp_bias)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Apply the layer to each position alone."""
        gate = self.gate_proj(x)
        wide = gate.astype(np.promote_types(gate.dtype, jnp.float32))
        return self.down_proj(nn.silu(wide).astype(gate.dtype) * self.up_proj(x))
