"""The `DIYConfig` that a GGUF file of the architecture `llama` spells out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.gguf.file import ROPE_FREQS, shape_of
from diy_core.config import DIYConfig
from diy_core.rope import inverse_frequencies
from diy_core.rope_scaling import RopeScaling

HEAD, EMBEDDING = "output.weight", "token_embd.weight"
# Entries of `llama.*` that are read below, and those that change nothing. Any other might.
_READ = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "vocab_size",
}
# One number, or a list with one for each layer.
_OF_LAYERS = {"attention.head_count", "attention.head_count_kv", "feed_forward_length"}
_IDLE = {
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "expert_count",
    "expert_used_count",
    "tensor_data_layout",
}
# Entries that change nothing where they have this value.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.sliding_window": (0,),
    "use_parallel_residual": (False,),
    "pooling_type": (0,),
}


def _neutral(entries: Mapping[str, Any]) -> set[str]:
    """The entries whose values change nothing; a window reaches as far as the context, or not."""
    found = {name for name, values in _NEUTRAL.items() if entries.get(name) in values}
    window, context = entries.get("attention.sliding_window"), entries.get("context_length")
    if isinstance(window, int) and isinstance(context, int) and window >= context:
        found.add("attention.sliding_window")
    return found


def read_config(
    metadata: Mapping[str, Any],
    found: Mapping[str, Any],
    scaling: RopeScaling | None = None,
) -> DIYConfig:
    """The config that the metadata and the set of tensors spell out.

    Args:
        metadata: the file's entries by name.
        found: its tensors (`gguf.ReaderTensor`) by name.
        scaling: tried first where the file holds rotary factors without saying their origin.

    Raises:
        ValueError: an entry that is missing, contradicts another, or asks for something that this
            model does not do.
    """
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"architecture {architecture!r} is not supported: this reads llama")
    entries = {k.removeprefix("llama."): v for k, v in metadata.items() if k.startswith("llama.")}
    if experts := entries.get("expert_count"):
        raise ValueError(f"llama.expert_count is {experts}: experts are not supported, only 0 is")
    if unknown := sorted(set(entries) - _READ - _IDLE - _neutral(entries)):
        raise ValueError(f"llama.{unknown[0]} is not supported: it may change what is computed")

    def get(name: str, absent: Any = None) -> Any:
        value = entries.get(name, absent)
        if value is None:
            raise ValueError(f"the file has no llama.{name}")
        each = isinstance(value, list) and name in _OF_LAYERS and len(value) == layers
        if each and any(one != value[0] for one in value):
            raise ValueError(f"llama.{name} is {value[:8]}: layers that differ are not supported")
        return value[0] if each else value

    layers: Any = entries.get("block_count")

    heads, hidden = get("attention.head_count"), get("embedding_length")
    countable = isinstance(heads, int) and isinstance(hidden, int) and heads > 0
    per_head = hidden // heads if countable else None
    head_dim = get("attention.key_length", get("rope.dimension_count", per_head))
    for name in ("attention.value_length", "rope.dimension_count"):
        if get(name, head_dim) != head_dim:
            raise ValueError(f"llama.{name} is {get(name)}, expected the head size {head_dim}")
    if isinstance(get("block_count"), int) and layers > len(found):
        raise ValueError(f"llama.block_count is {layers}, and there are {len(found)} tensors")
    embedding = found.get(EMBEDDING)
    rows = None if embedding is None else shape_of(embedding)[0]
    config = DIYConfig(
        vocab_size=get("vocab_size", rows),
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_theta=get("rope.freq_base", 10000.0),
        rope_scaling=_scaling(entries),
        tie_word_embeddings=HEAD not in found,
        attention_bias=any(re.search(r"\.attn_\w+\.bias$", name) for name in found),
        mlp_bias=any(re.search(r"\.ffn_\w+\.bias$", name) for name in found),
    )
    if ROPE_FREQS in found:
        config = dataclasses.replace(
            config, rope_scaling=_llama3(config, found[ROPE_FREQS], scaling)
        )
    return config


def _scaling(entries: Mapping[str, Any]) -> RopeScaling | None:
    kind = entries.get("rope.scaling.type")
    factor = entries.get("rope.scaling.factor", entries.get("rope.scale_linear", 1.0))
    if kind not in (None, "none", "linear"):
        raise ValueError(
            f"llama.rope.scaling.type {kind!r} is not supported: this reads linear, none"
        )
    return (
        None
        if kind == "none" or factor in (0.0, 1.0)
        else RopeScaling(rope_type="linear", factor=factor)
    )


def _llama3(config: DIYConfig, tensor: Any, known: RopeScaling | None) -> RopeScaling | None:
    """The scaling behind `rope_freqs.weight`, which holds factors (H/2,) and not their origin.

    The file does not say how they were computed. What Llama 3.1, 3.2 and 3.3 share is tried, and
    taken only where it gives the same factors.
    """
    factors = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
    guess = RopeScaling(
        rope_type="llama3",
        factor=max(1.0, float(factors.max())),
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )

    def gives(scaling: RopeScaling | None) -> bool:
        if scaling is None or scaling.rope_type != "llama3" or config.rope_scaling is not None:
            return False
        if factors.shape != (config.head_size // 2,):  # or a damaged size would be computed for
            return False
        expected = rope_factors(dataclasses.replace(config, rope_scaling=scaling))
        return np.allclose(factors, expected, rtol=1e-5, atol=0)

    if gives(known):
        return known
    if np.all(factors == 1.0):
        return config.rope_scaling
    if gives(guess):
        return guess
    raise ValueError(
        f"{ROPE_FREQS} holds rotary factors that are not those of Llama 3.1 to 3.3, and the "
        "file does not say where they come from: convert from the original Hugging Face "
        "directory instead"
    )


def rope_factors(config: DIYConfig) -> NDArray[np.float32]:
    """What `rope_freqs.weight` holds: by how much each frequency is divided, float32 (H/2,)."""
    plain = inverse_frequencies(dataclasses.replace(config, rope_scaling=None))
    return (plain / inverse_frequencies(config)).astype(np.float32)


def config_metadata(config: DIYConfig) -> dict[str, Any]:
    """The `llama.*` entries of a config, as far as llama.cpp has names for it.

    The scaling `llama3` is not an entry but the tensor `rope_freqs.weight`: see `rope_factors`.
    """
    entries: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_size,
        "attention.value_length": config.head_size,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_theta,
        "rope.dimension_count": config.head_size,
        "vocab_size": config.vocab_size,
    }
    scaling = config.rope_scaling
    if scaling is not None and scaling.rope_type == "linear":
        entries |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling.factor}
    return {f"llama.{key}": value for key, value in entries.items()}
