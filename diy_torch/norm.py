"""Root mean square normalisation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """y = weight * x / sqrt(mean(x**2) + eps), over the last axis.

    Normalised in float32 (float64 for a float64 input), cast back, then times the weight: in
    bfloat16 the place of that cast is visible.

    Args:
        hidden_size: D, the size of the last axis.
        eps: added to the mean square, so that zeros do not divide by zero.

    Source: Zhang and Sennrich, arXiv:1910.07467.
    """

    def __init__(self, hidden_size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Normalise x.

        Args:
            x: (..., D), of any float dtype.

        Returns:
            The same shape and dtype; the mean is taken in float32, or float64 where x is.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = wide.square().mean(dim=-1, keepdim=True)
        normalised = wide * torch.rsqrt(mean_square + self.eps)
        return normalised.to(x.dtype) * self.weight
