"""Causal self-attention with grouped key/value heads.

Shapes: B batch, S sequence of this call, T keys (S, or the cache's capacity), D hidden, N query
heads, K key/value heads, G = N/K, H head_dim.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int, UInt32
from torch import Tensor, nn

from diy_core.config import DIYConfig
from diy_torch.cache import Cached, update_cache
from diy_torch.random import dropout, fold_in
from diy_torch.rope import RopeTables, apply_rope

# What the probabilities fold into their layer's dropout key; `ModelBlock` has the other numbers.
_SITE = 0


def attention_mask_from_positions(
    query_positions: Int[Tensor, "B S"],
    key_positions: Int[Tensor, "B T"],
    query_segments: Int[Tensor, "B S"] | None = None,
    key_segments: Int[Tensor, "B T"] | None = None,
) -> Bool[Tensor, "B S T"]:
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

    def __init__(self, config: DIYConfig) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.kv_heads,
            config.head_size,
        )
        self.attention_dropout = config.attention_dropout
        bias, inner = config.attention_bias, self.heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        rope: RopeTables,
        mask: Bool[Tensor, "B S T"],
        seq_lengths: Int[Tensor, " B"] | None = None,
        past: tuple[Cached, Tensor] | None = None,
        dropout_key: UInt32[Tensor, " 2"] | None = None,
    ) -> tuple[Float[Tensor, "B S D"], tuple[Cached, Tensor] | None]:
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

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.head_dim)).transpose(1, 2)

    def _attend(
        self,
        query: Float[Tensor, "B N S H"],
        key: Float[Tensor, "B K T H"],
        value: Float[Tensor, "B K T H"],
        mask: Bool[Tensor, "B S T"],
        dropout_key: UInt32[Tensor, " 2"] | None = None,
    ) -> Float[Tensor, "B S N*H"]:
        """Scores, mask and softmax in float32, probabilities cast back, times the values."""
        wide = torch.promote_types(query.dtype, torch.float32)
        batch, heads, queries, head_dim = query.shape
        grouped = query.reshape(batch, self.kv_heads, -1, head_dim)  # (B, K, G*S, H)
        scores = grouped.to(wide) @ key.to(wide).transpose(2, 3)
        scores = scores.view(batch, self.kv_heads, -1, queries, key.shape[2])
        scores = scores * head_dim**-0.5
        scores = scores.masked_fill(~mask[:, None, None, :, :], float("-inf"))
        weights = scores.softmax(dim=-1).to(value.dtype)
        rate = self.attention_dropout
        if dropout_key is not None and rate:
            weights = dropout(fold_in(dropout_key, _SITE), weights, rate)
        mixed = weights.flatten(2, 3) @ value
        return mixed.view(batch, heads, queries, head_dim).transpose(1, 2).flatten(2)
