"""Rotary position embedding, half-split pairing: channel j turns with channel j + H/2.

That is the pairing of Hugging Face files. (Files of llama.cpp pair neighbours, 2j with 2j + 1, and
hold the rows of q and k permuted to match.)
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diy_core.config import DIYConfig
from diy_core.rope import inverse_frequencies

RopeTables = tuple[Array, Array]


def rope_tables(
    config: DIYConfig, positions: Int[Array, "B S"], dtype: Any
) -> tuple[Float[Array, "B S half"], Float[Array, "B S half"]]:
    """cos and sin of position * frequency, for each position and each pair of channels.

    Angles are computed in float32 (float64 where `dtype` is): in bfloat16 they would be off by half
    a radian at position 2047.
    """
    wide = np.promote_types(dtype, jnp.float32)
    frequencies = jnp.asarray(inverse_frequencies(config).astype(wide))
    angles = positions[:, :, None].astype(wide) * frequencies[None, None, :]
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def apply_rope(
    x: Float[Array, "B heads S H"],
    cos: Float[Array, "B S half"],
    sin: Float[Array, "B S half"],
) -> Float[Array, "B heads S H"]:
    """Rotate each pair (x[j], x[j + H/2]) by its angle.

    Source: Su et al., arXiv:2104.09864, equation 34, with the pairs split in halves.
    """
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, None, :, :], sin[:, None, :, :]
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)
