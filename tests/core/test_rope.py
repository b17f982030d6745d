"""Inverse frequencies against the formula, written out, and against transformers."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from diy_core import DIYConfig, RopeScaling
from diy_core.rope import inverse_frequencies

SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
LINEAR = RopeScaling(rope_type="linear", factor=2.5)
LLAMA31 = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
SHORT = RopeScaling(
    rope_type="llama3",
    factor=32.0,
    low_freq_factor=0.5,
    high_freq_factor=3.0,
    original_max_position_embeddings=100,
)
APART = RopeScaling(rope_type="linear", factor=0.5)
UNBLENDED = dataclasses.replace(SHORT, low_freq_factor=3.0, high_freq_factor=1.0)
CASES = [
    (scaling, theta, head_dim)
    for scaling in (None, LINEAR, LLAMA31, SHORT, APART, UNBLENDED)
    for theta, head_dim in ((10000.0, 64), (5e5, 128), (1e4, 6), (3.0, 2))
]


def frequency(j: int, head_dim: int, theta: float, scaling: RopeScaling | None) -> float:
    """Llama 3.1's reference code (`apply_scaling`), one number at a time."""
    base = theta ** (-2 * j / head_dim)
    if scaling is None:
        return base
    if scaling.rope_type == "linear":
        return base / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    length = scaling.original_max_position_embeddings
    assert low is not None
    assert high is not None
    assert length is not None
    wavelength = 2 * math.pi / base
    if wavelength < length / max(low, high):
        return base
    if wavelength > length / low:
        return base / scaling.factor
    smooth = (length / wavelength - low) / (high - low)
    return (1 - smooth) * base / scaling.factor + smooth * base


@pytest.mark.parametrize(("scaling", "theta", "head_dim"), CASES)
def test_frequencies_are_the_formula_in_float64(
    scaling: RopeScaling | None, theta: float, head_dim: int
) -> None:
    config = DIYConfig(**SMALL, head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    found = inverse_frequencies(config)
    assert found.dtype == np.float64
    assert found.shape == (head_dim // 2,)
    wanted = [frequency(j, head_dim, theta, scaling) for j in range(head_dim // 2)]
    assert np.max(np.abs(found / wanted - 1)) <= 1e-15


@pytest.mark.parametrize(("scaling", "theta", "head_dim"), CASES)
def test_frequencies_are_those_of_transformers_to_float32(
    scaling: RopeScaling | None, theta: float, head_dim: int
) -> None:
    config = DIYConfig(
        **SMALL,
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=16384,
    )
    theirs = transformers.LlamaConfig.from_dict(config.to_dict())
    if scaling is None:
        wanted = LlamaRotaryEmbedding(theirs).inv_freq.numpy()
    else:
        wanted, attention_factor = ROPE_INIT_FUNCTIONS[scaling.rope_type](theirs, "cpu")
        assert attention_factor == 1.0
        wanted = wanted.numpy()
    np.testing.assert_allclose(inverse_frequencies(config), wanted, rtol=2e-6)


def test_the_cases_reach_all_three_regions_of_llama3() -> None:
    config = DIYConfig(**SMALL, head_dim=64, rope_scaling=SHORT)
    plain = inverse_frequencies(DIYConfig(**SMALL, head_dim=64))
    ratio = inverse_frequencies(config) / plain
    kept, divided = ratio == 1, np.isclose(ratio, 1 / 32, rtol=1e-15)
    assert kept.sum() > 3
    assert divided.sum() > 3
    assert (~kept & ~divided).sum() > 3


def test_a_literal_table() -> None:
    config = DIYConfig(**SMALL, head_dim=8, rope_theta=10000.0)
    assert inverse_frequencies(config).tolist() == pytest.approx([1.0, 0.1, 0.01, 0.001], rel=1e-15)
