"""A block: attention and feed-forward, each after a norm, each added to what came in.

Shapes: B batch, S sequence of this call, T slots of the cache, D hidden.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int, UInt32
from torch import Tensor, nn

from diy_core.config import DIYConfig
from diy_torch.attention import Attention
from diy_torch.cache import Cached
from diy_torch.feedforward import FeedForward
from diy_torch.norm import RMSNorm
from diy_torch.random import dropout, fold_in
from diy_torch.rope import RopeTables

# What the two halves of a layer fold into its dropout key; `Attention` has 0 for its probabilities.
_ATTENDED, _FED = 1, 2


class ModelBlock(nn.Module):
    """One layer: h = x + attention(norm(x)), then h + feedforward(norm(h)).

    Args:
        config: of the model: D, F, N, K and H, the eps of the norms, biases and dropouts.
    """

    def __init__(self, config: DIYConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.feedforward_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.feedforward = FeedForward(config)
        self.residual_dropout = config.residual_dropout

    def forward(
        self,
        x: Float[Tensor, "B S D"],
        rope: RopeTables,
        mask: Bool[Tensor, "B S T"],
        seq_lengths: Int[Tensor, " B"] | None = None,
        past: tuple[Cached, Tensor] | None = None,
        dropout_key: UInt32[Tensor, " 2"] | None = None,
    ) -> tuple[Float[Tensor, "B S D"], tuple[Cached, Tensor] | None]:
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

    def _drop(self, x: Tensor, key: Tensor | None, site: int) -> Tensor:
        rate = self.residual_dropout
        return x if key is None or not rate else dropout(fold_in(key, site), x, rate)
