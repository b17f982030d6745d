"""Causal self-attention with grouped key/value heads.

Shapes: B batch, S sequence of this call, T keys (S, or the cache's capacity), D hidden, N query
heads, K key/value heads, G = N/K, H head_dim.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, UInt32

from diy_core.config import DIYConfig
from diy_jax.cache import Cached, update_cache
from diy_jax.linear import Linear
from diy_jax.random import dropout, fold_in
from diy_jax.rope import RopeTables, apply_rope

# What the probabilities fold into their layer's dropout key; `ModelBlock` has the other numbers.
_SITE = 0


def attention_mask_from_positions(
    query_positions: Int[Array, "B S"],
    key_positions: Int[Array, "B T"],
    query_segments: Int[Array, "B S"] | None = None,
    key_segments: Int[Array, "B T"] | None = None,
) -> Bool[Array, "B S T"]:
    """True where a query may look: at keys not after it, in its own segment.

    Padding needs no entry of its own: it stands after the last valid token of a row, where no
    valid query looks.
    """
    mask = key_positions[:, None, :] <= query_positions[:, :, None]
    if query_segments is not None and key_segments is not None:
        mask = mask & (query_segments[:, :, None] == key_segments[:, None, :])
    return mask


class Attention(nn.Module):
    """softmax(q k^T / sqrt(H) + mask) v, with N query heads over K key/value heads.

    Query head n uses key/value head n // G.

    Source: Vaswani et al., arXiv:1706.03762; grouped heads: Ainslie et al., arXiv:2305.13245.
    """

    config: DIYConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    def setup(self) -> None:
        """The four projections."""
        self.heads, self.kv_heads, self.head_dim = (
            self.config.num_attention_heads,
            self.config.kv_heads,
            self.config.head_size,
        )
        linear = partial(
            Linear,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            use_bias=self.config.attention_bias,
            std=self.config.initializer_range,
        )
        inner = self.heads * self.head_dim
        self.q_proj = linear(inner)
        self.k_proj = linear(self.kv_heads * self.head_dim)
        self.v_proj = linear(self.kv_heads * self.head_dim)
        self.o_proj = linear(self.config.hidden_size)

    def __call__(
        self,
        x: Float[Array, "B S D"],
        rope: RopeTables,
        mask: Bool[Array, "B S T"],
        seq_lengths: Int[Array, " B"] | None = None,
        past: tuple[Cached, Array] | None = None,
        dropout_key: UInt32[Array, " 2"] | None = None,
    ) -> tuple[Float[Array, "B S D"], tuple[Cached, Array] | None]:
        """Attend within x, or with `past` (which needs `seq_lengths`) to the updated cache.

        With a key, probabilities are dropped at the config's `attention_dropout`.
        """
        query = apply_rope(self._split(self.q_proj(x), self.heads), *rope)
        key = apply_rope(self._split(self.k_proj(x), self.kv_heads), *rope)
        value = self._split(self.v_proj(x), self.kv_heads)
        present = None
        if past is not None:
            assert seq_lengths is not None
            present = update_cache(*past, key, value, seq_lengths)
            key, value = present[0]["key"], present[0]["value"]
        return self.o_proj(self._attend(query, key, value, mask, dropout_key)), present

    def _split(self, x: Array, heads: int) -> Array:
        return x.reshape(*x.shape[:2], heads, self.head_dim).swapaxes(1, 2)

    def _attend(
        self,
        query: Float[Array, "B N S H"],
        key: Float[Array, "B K T H"],
        value: Float[Array, "B K T H"],
        mask: Bool[Array, "B S T"],
        dropout_key: UInt32[Array, " 2"] | None = None,
    ) -> Float[Array, "B S N*H"]:
        """Scores, mask and softmax in float32, probabilities cast back, times the values."""
        wide = np.promote_types(query.dtype, jnp.float32)
        batch, _, queries, head_dim = query.shape
        grouped = query.reshape(batch, self.kv_heads, -1, queries, head_dim)  # (B, K, G, S, H)
        scores = jnp.einsum("bkgsh,bkth->bkgst", grouped, key, preferred_element_type=wide)
        scores = scores * head_dim**-0.5
        scores = jnp.where(mask[:, None, None, :, :], scores, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        rate = self.config.attention_dropout
        if dropout_key is not None and rate:
            weights = dropout(fold_in(dropout_key, _SITE), weights, rate)
        mixed = jnp.einsum("bkgst,bkth->bskgh", weights, value)
        return mixed.reshape(batch, queries, -1)
