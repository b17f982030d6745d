"""A block: attention and feed-forward, each after a norm, each added to what came in.

Shapes: B batch, S sequence of this call, T slots of the cache, D hidden.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt32

from diy_core.config import DIYConfig
from diy_jax.attention import Attention
from diy_jax.cache import Cached
from diy_jax.feedforward import FeedForward
from diy_jax.norm import RMSNorm
from diy_jax.random import dropout, fold_in
from diy_jax.rope import RopeTables

# What the two halves of a layer fold into its dropout key; `Attention` has 0 for its probabilities.
_ATTENDED, _FED = 1, 2


class ModelBlock(nn.Module):
    """One layer: h = x + attention(norm(x)), then h + feedforward(norm(h)).

    Args:
        config: of the model: D, F, N, K and H, the eps of the norms, biases and dropouts.
        dtype: of the computation.
        param_dtype: of the weights that `init` makes.
    """

    config: DIYConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """Two norms, attention and feed-forward."""
        config, dtypes = self.config, (self.dtype, self.param_dtype)
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, self.param_dtype)
        self.attention = Attention(config, *dtypes)
        self.feedforward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps, self.param_dtype)
        self.feedforward = FeedForward(config, *dtypes)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        rope: RopeTables,
        mask: Bool[Array, "B S T"],
        seq_lengths: Int[Array, " B"] | None = None,
        past: tuple[Cached, Array] | None = None,
        dropout_key: UInt32[Array, " 2"] | None = None,
    ) -> tuple[Float[Array, "B S D"], tuple[Cached, Array] | None]:
        """The block's output (B, S, D), and its updated cache layer where `past` was given.

        Args:
            x: hidden states.
            rope: cosines and sines of the positions of each row.
            mask: True where a token attends to a slot.
            seq_lengths: the valid tokens of each row; None: all S.
            past: the layer's entry of a cache.
            dropout_key: drop the attention's probabilities, and what both halves add, at the
                config's rates; None: nothing.
        """
        normed = self.attention_norm(x)
        attended, present = self.attention(normed, rope, mask, seq_lengths, past, dropout_key)
        hidden = x + self._drop(attended, dropout_key, _ATTENDED)
        fed = self.feedforward(self.feedforward_norm(hidden))
        return hidden + self._drop(fed, dropout_key, _FED), present

    def _drop(self, x: Array, key: Array | None, site: int) -> Array:
        rate = self.config.residual_dropout
        return x if key is None or not rate else dropout(fold_in(key, site), x, rate)
