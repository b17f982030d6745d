"""The tracer on the two twins, from checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diy_jax
import diy_torch
from diy_core.config import DIYConfig
from diy_core.notes import notes_refused
from diy_core.system.sources import unchanged_sources
from parity.convert.directories import as_directory
from parity.convert.formats import kind_of
from parity.environment import TORCH_DTYPES, Device, exact
from parity.inspect.config_differences import config_differences
from parity.tracer import trace
from parity.tracing.match.rules import RuleError, twin_rules
from parity.tracing.result import TraceResult

_TOKENS = 64  # of a prompt whose length nobody chose


def trace_twins(
    one: str | Path,
    other: str | Path,
    device: Device,
    *,
    dtype: str = "float64",
    tokens: int | None = None,
    backward: bool = True,
    jit: bool = False,
    strict: bool = False,
) -> TraceResult:
    """Trace the PyTorch twin of one checkpoint against the Flax twin of another.

    Args:
        one: a checkpoint of any kind.
        other: another, or the same.
        device: of both.
        dtype: of weights and computation.
        tokens: of a random prompt of two rows, the second a third shorter; None: 64, or as many as
            both models take.
        backward: whether gradients are compared.
        jit: run the Flax twin compiled.
        strict: refuse a checkpoint that is odd but means the same; else it is read with a warning,
            a `CheckpointNote`.

    Raises:
        ValueError: a checkpoint that cannot be loaded; `tokens` that are none, or more than a model
            takes; or, with `strict`, an odd checkpoint.
    """
    with exact(device), notes_refused(strict), contextlib.ExitStack() as stack:
        stack.enter_context(unchanged_sources(one, other))
        if kind_of(one) == "orbax":  # which the PyTorch twin does not read
            one = stack.enter_context(as_directory(one))
        whole = diy_torch.DIYForCausalLM.from_pretrained(one, TORCH_DTYPES[dtype], device.torch)
        model, params = diy_jax.DIYForCausalLM.from_pretrained(other, jnp.dtype(dtype))
        config = whole.config
        tokens = _prompt_length(tokens, config, model.config)
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


def _prompt_length(tokens: int | None, *configs: DIYConfig) -> int:
    most = min(config.max_position_embeddings for config in configs)
    if tokens is None:
        return min(_TOKENS, most)
    if tokens < 1:
        raise ValueError(f"tokens must be at least 1, got {tokens}")
    if tokens > most:
        raise ValueError(
            f"tokens ({tokens}) are more than max_position_embeddings ({most}): give at most "
            f"tokens={most}"
        )
    return tokens
