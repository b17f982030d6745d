"""Rotary position embedding, half-split pairing: channel j turns with channel j + H/2.

That is the pairing of Hugging Face files. (Files of llama.cpp pair neighbours, 2j with 2j + 1, and
hold the rows of q and k permuted to match.)
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diy_core.config import DIYConfig
from diy_core.rope import inverse_frequencies

RopeTables = tuple[Tensor, Tensor]


def rope_tables(
    config: DIYConfig, positions: Int[Tensor, "B S"], dtype: torch.dtype
) -> tuple[Float[Tensor, "B S half"], Float[Tensor, "B S half"]]:
    """cos and sin of position * frequency, for each position and each pair of channels.

    Angles are computed in float32 (float64 where `dtype` is): in bfloat16 they would be off by half
    a radian at position 2047.
    """
    wide = torch.promote_types(dtype, torch.float32)
    table: NDArray[np.float64] = inverse_frequencies(config)
    frequencies = torch.from_numpy(table).to(wide).to(positions.device)
    angles = positions[:, :, None].to(wide) * frequencies[None, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def apply_rope(
    x: Float[Tensor, "B heads S H"],
    cos: Float[Tensor, "B S half"],
    sin: Float[Tensor, "B S half"],
) -> Float[Tensor, "B heads S H"]:
    """Rotate each pair (x[j], x[j + H/2]) by its angle.

    Source: Su et al., arXiv:2104.09864, equation 34, with the pairs split in halves.
    """
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos[:, None, :, :], sin[:, None, :, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
