"""The gated feed-forward layer."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diy_core.config import DIYConfig


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)).

    silu is computed in float32 and cast back, since frameworks disagree about it in bfloat16.

    Source: Shazeer, arXiv:2002.05202.
    """

    def __init__(self, config: DIYConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """Apply the layer to each position alone."""
        gate = self.gate_proj(x)
        wide = gate.to(torch.promote_types(gate.dtype, torch.float32))
        return self.down_proj(functional.silu(wide).to(gate.dtype) * self.up_proj(x))
