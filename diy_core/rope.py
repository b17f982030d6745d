"""Inverse frequencies of the rotary embedding: one float64 numpy table for both twins.

A table in float32 is already enough to fail float64 checks, hence numpy and float64 here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig
from diy_core.rope_scaling import RopeScaling


def inverse_frequencies(config: DIYConfig) -> NDArray[np.float64]:
    """theta ** (-2j / head_dim) for j in 0 .. head_dim/2 - 1, stretched as `rope_scaling` says.

    Returns:
        float64 (H/2,), in radians per position.

    Source: RoFormer, arXiv:2104.09864, equation 15.
    """
    exponents = np.arange(0, config.head_size, 2, dtype=np.float64) / config.head_size
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    return _llama3(frequencies, scaling)


def _llama3(frequencies: NDArray[np.float64], scaling: RopeScaling) -> NDArray[np.float64]:
    """Llama 3.1: long wavelengths divided by the factor, short ones kept, between them a blend."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    original = scaling.original_max_position_embeddings
    assert low is not None
    assert high is not None
    assert original is not None
    turns = original * frequencies / (2 * math.pi)  # rotations within the original context
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0) if high > low else turns >= low
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor
