"""Root mean square normalisation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from diy_jax.linear import spread


class RMSNorm(nn.Module):
    """y = scale * x / sqrt(mean(x**2) + eps), over the last axis.

    Normalised in float32 (float64 for a float64 input), cast back, then times the scale: in
    bfloat16 the place of that cast is visible.

    Args:
        hidden_size: D, the size of the last axis.
        eps: added to the mean square, so that zeros do not divide by zero.
        param_dtype: of the stored scale; it is cast to the dtype of x where it is used.

    Source: Zhang and Sennrich, arXiv:1910.07467.
    """

    hidden_size: int
    eps: float = 1e-5
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalise x.

        Args:
            x: (..., D), of any float dtype.

        Returns:
            The same shape and dtype; the mean is taken in float32, or float64 where x is.
        """
        scale = self.param("scale", nn.initializers.ones, (self.hidden_size,), self.param_dtype)
        wide = x.astype(np.promote_types(x.dtype, jnp.float32))
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normalised = wide * jax.lax.rsqrt(mean_square + self.eps)
        return normalised.astype(x.dtype) * spread(scale, x)
