"""What the twins are measured against: tiny configs, random weights, and the model in plain numpy.

Everything is float64 and written as slowly and as literally as it can be: loops over heads and
positions, complex numbers for rotations. Letters as in the twins.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig, RopeScaling
from diy_core.mapping import tensors

Array = NDArray[Any]

LINEAR = RopeScaling(rope_type="linear", factor=4.0)
LLAMA3 = RopeScaling(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)


def tiny(**changes: Any) -> DIYConfig:
    """A model of two layers with grouped heads, small enough for loops."""
    values: dict[str, Any] = {
        "vocab_size": 23,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    return DIYConfig(**(values | changes))


CONFIGS = {
    "gqa": tiny(),
    "mha": tiny(num_key_value_heads=4),
    "mqa": tiny(num_key_value_heads=1, head_dim=10),
    "untied": tiny(tie_word_embeddings=False, rms_norm_eps=1e-3),
    "biases": tiny(attention_bias=True, mlp_bias=True),
    "linear": tiny(rope_scaling=LINEAR),
    "llama3": tiny(rope_scaling=LLAMA3, rope_theta=500.0, head_dim=8),
}


def random_weights(config: DIYConfig, seed: int = 0) -> dict[str, Array]:
    """Weights by Hugging Face name, in its layout: norm scales are not 1 and biases not 0."""
    generator = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...], kind: str) -> Array:
        if kind == "norm":
            return generator.uniform(0.5, 1.5, shape)
        return generator.normal(0.0, 0.3 if kind == "bias" else shape[1] ** -0.5, shape)

    return {tensor.hf: draw(tensor.shape, tensor.kind) for tensor in tensors(config)}


def random_ids(config: DIYConfig, *shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape, np.int32)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    return weight * x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def frequencies(config: DIYConfig) -> Array:
    """Radians per position of each pair of channels; llama3 as Meta's own code has it."""
    plain = np.array(
        [config.rope_theta ** (-2 * j / config.head_size) for j in range(config.head_size // 2)]
    )
    scaling = config.rope_scaling
    if scaling is None:
        return plain
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    context = scaling.original_max_position_embeddings
    assert low is not None
    assert high is not None
    assert context is not None
    result = []
    for frequency in plain:
        wavelength = 2 * np.pi / frequency
        if wavelength < context / high:
            result.append(frequency)
        elif wavelength > context / low:
            result.append(frequency / scaling.factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            result.append((1 - smooth) * frequency / scaling.factor + smooth * frequency)
    return np.array(result)


def rotate(x: Array, positions: Array, config: DIYConfig) -> Array:
    """x (..., S, H) at positions (S,): channels j and j + H/2 are one complex number, turned."""
    half = x.shape[-1] // 2
    number = x[..., :half] + 1j * x[..., half:]
    number = number * np.exp(1j * positions[:, None] * frequencies(config)[None, :])
    return np.concatenate([number.real, number.imag], axis=-1)


def softmax(scores: Array) -> Array:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


@dataclasses.dataclass
class NumpyModel:
    """One row, one document, no cache: logits (S, V) of token ids (S,)."""

    config: DIYConfig
    weights: dict[str, Array]

    def linear(self, name: str, x: Array) -> Array:
        bias = self.weights.get(f"{name}.bias", 0.0)
        return np.einsum("...i,oi->...o", x, self.weights[f"{name}.weight"]) + bias

    def norm(self, name: str, x: Array) -> Array:
        return rms_norm(x, self.weights[f"{name}.weight"], self.config.rms_norm_eps)

    def attention(self, prefix: str, x: Array) -> Array:
        """x (S, D): every query head alone, every query alone."""
        config, (steps, _) = self.config, x.shape
        size, positions = config.head_size, np.arange(len(x))
        query, key, value = (
            self.linear(f"{prefix}.{name}_proj", x).reshape(steps, -1, size) for name in "qkv"
        )
        mixed = np.zeros((steps, config.num_attention_heads, size))
        for head in range(config.num_attention_heads):
            group = head // (config.num_attention_heads // config.kv_heads)
            q = rotate(query[:, head], positions, config)
            k = rotate(key[:, group], positions, config)
            for t in range(steps):
                scores = np.array([q[t] @ k[s] / np.sqrt(size) for s in range(t + 1)])
                mixed[t, head] = softmax(scores) @ value[: t + 1, group]
        return self.linear(f"{prefix}.o_proj", mixed.reshape(steps, -1))

    def feedforward(self, prefix: str, x: Array) -> Array:
        gate, up = (self.linear(f"{prefix}.{name}_proj", x) for name in ("gate", "up"))
        return self.linear(f"{prefix}.down_proj", silu(gate) * up)

    def logits(self, ids: Array) -> Array:
        embedding = self.weights["model.embed_tokens.weight"]
        x = embedding[ids]
        for i in range(self.config.num_hidden_layers):
            layer = f"model.layers.{i}"
            attended = self.norm(f"{layer}.input_layernorm", x)
            x = x + self.attention(f"{layer}.self_attn", attended)
            fed = self.norm(f"{layer}.post_attention_layernorm", x)
            x = x + self.feedforward(f"{layer}.mlp", fed)
        return self.norm("model.norm", x) @ self.weights.get("lm_head.weight", embedding).T


# One change per field of the config, from `tiny()`, with what must change: the shapes of the
# parameters, or the logits of the same weights, or both by way of other first weights.
FIELD_CHANGES: dict[str, tuple[Any, str]] = {
    "vocab_size": (29, "shapes"),
    "hidden_size": (24, "shapes"),
    "intermediate_size": (28, "shapes"),
    "num_hidden_layers": (1, "shapes"),
    "num_attention_heads": (8, "shapes"),
    "num_key_value_heads": (4, "shapes"),
    "head_dim": (8, "shapes"),
    "tie_word_embeddings": (False, "shapes"),
    "attention_bias": (True, "shapes"),
    "mlp_bias": (True, "shapes"),
    "rms_norm_eps": (1e-2, "logits"),
    "rope_theta": (100.0, "logits"),
    "rope_scaling": (LINEAR, "logits"),
    "initializer_range": (0.5, "first weights"),
    "attention_dropout": (0.5, "dropout"),
    "residual_dropout": (0.5, "dropout"),
    "max_position_embeddings": (5, "limit"),
    "extra": ({"bos_token_id": 1}, "file"),
}
SCALING_CHANGES: dict[str, Any] = {
    "rope_type": LINEAR,
    "factor": dataclasses.replace(LLAMA3, factor=32.0),
    "low_freq_factor": dataclasses.replace(LLAMA3, low_freq_factor=2.0),
    "high_freq_factor": dataclasses.replace(LLAMA3, high_freq_factor=16.0),
    "original_max_position_embeddings": dataclasses.replace(
        LLAMA3, original_max_position_embeddings=16
    ),
}
