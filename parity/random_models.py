"""Small random models for the checks: every switch of the config, at two weight scales.

No single scale shows every fault: with small weights rotary faults vanish, with large ones a wrong
eps does. Norm scales are not 1 and biases not 0, or a fault in them would not show either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.hf.writer import write_hf_directory
from diy_core.config import DIYConfig
from diy_core.errors import listed
from diy_core.mapping import Tensor, tensors
from diy_core.rope_scaling import RopeScaling

SCALES = ("small", "fan-in")
_SMALL_STD = 0.02


def _config(**changes: Any) -> DIYConfig:
    values: dict[str, Any] = {
        "vocab_size": 131,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
    }
    return DIYConfig(**(values | changes))


def small_configs() -> dict[str, DIYConfig]:
    """One config per switch, by name."""
    llama3 = RopeScaling(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=64,
    )
    return {
        "mha": _config(num_key_value_heads=6),
        "gqa": _config(),
        "mqa": _config(num_key_value_heads=1, rms_norm_eps=1e-6),
        "head_dim-10": _config(head_dim=10, rope_theta=500.0),
        "untied": _config(tie_word_embeddings=False),
        "biases": _config(attention_bias=True, mlp_bias=True),
        "rope-linear": _config(rope_scaling=RopeScaling(rope_type="linear", factor=4.0)),
        "rope-llama3": _config(rope_scaling=llama3, rope_theta=5e5, head_dim=16),
    }


def random_weights(tensor: Tensor, scale: str, seed: int) -> NDArray[np.float64]:
    """Weights of one tensor in the torch layout, float64.

    `small` is normal(0, 0.02); `fan-in` is normal(0, 1/sqrt(inputs)). Norm scales are uniform in
    0.5 .. 1.5 and biases normal(0, 0.1) at both.
    """
    generator = np.random.default_rng([seed, *tensor.hf.encode()])
    if tensor.kind == "norm":
        return generator.uniform(0.5, 1.5, tensor.shape)
    if tensor.kind == "bias":
        return generator.normal(0.0, 0.1, tensor.shape)
    std = _SMALL_STD if scale == "small" else tensor.shape[1] ** -0.5
    return generator.normal(0.0, std, tensor.shape)


def write_random_model(path: Path, config: DIYConfig, scale: str, seed: int = 0) -> None:
    """Write a random model as a Hugging Face directory in float64.

    Raises:
        ValueError: an unknown scale.
    """
    if scale not in SCALES:
        raise ValueError(f"scale {scale!r} is not supported; choose one of {listed(SCALES)}")
    write_hf_directory(
        path, config, ((t.hf, random_weights(t, scale, seed)) for t in tensors(config))
    )
