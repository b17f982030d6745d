"""The tracer on the two twins, from directories."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diy_jax
import diy_torch
from diy_core.checkpoints.hf_directory import require_directory
from diy_core.config import DIYConfig
from diy_jax import orbax_store
from parity.config_differences import config_differences
from parity.convert import kind_of
from parity.environment import TORCH_DTYPES, Device, exact
from parity.tracing import RuleError, TraceResult, trace, twin_rules


def trace_twins(
    one: str | Path,
    other: str | Path,
    device: Device,
    *,
    dtype: str = "float64",
    tokens: int = 64,
    backward: bool = True,
    jit: bool = False,
) -> TraceResult:
    """Trace the PyTorch twin of one directory against the Flax twin of another.

    Args:
        one: a Hugging Face directory.
        other: a Hugging Face directory or an Orbax checkpoint.
        device: of both.
        dtype: of weights and computation.
        tokens: of a random prompt of two rows, the second a third shorter.
        backward: whether gradients are compared.
        jit: run the Flax twin compiled.

    Raises:
        ValueError: a directory that cannot be loaded, or vocabularies that differ.
    """
    require_directory(one)
    config = DIYConfig.from_pretrained(one)
    with exact(device):
        whole = diy_torch.DIYForCausalLM.from_pretrained(one, TORCH_DTYPES[dtype], device.torch)
        model, params = _flax(other, dtype)
        tokens = min(tokens, config.max_position_embeddings, model.config.max_position_embeddings)
        vocabulary = min(config.vocab_size, model.config.vocab_size)
        generator = np.random.default_rng(0)
        ids = generator.integers(0, vocabulary, (2, tokens), np.int32)
        lengths = np.array([tokens, max(1, 2 * tokens // 3)], np.int32)
        options: dict[str, Any] = {"backward": backward, "jit": jit}
        params = jax.device_put(params, device.jax)
        try:
            rules = twin_rules(config)
            found = trace(whole, model, params, (ids, None, lengths), rules=rules, **options)
        except RuleError:  # two models of other shapes: what of them is the same has to be guessed
            found = trace(whole, model, params, (ids, None, lengths), **options)
    return dataclasses.replace(found, config=config_differences(config, model.config))


def _flax(path: str | Path, dtype: str) -> tuple[Any, Any]:
    if kind_of(path) != "orbax":
        return diy_jax.DIYForCausalLM.from_pretrained(path, jnp.dtype(dtype))
    config, params = orbax_store.load_params(path, jnp.dtype(dtype))
    return diy_jax.DIYForCausalLM(config, dtype=jnp.dtype(dtype)), params
