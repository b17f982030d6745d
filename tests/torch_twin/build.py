"""Models of the PyTorch twin with random weights, and their logits as numpy."""

from __future__ import annotations

from typing import Any

import torch

import diy_torch
from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_torch.tensors import assign_weights, to_numpy
from tests.oracles import Array, random_weights


def build(
    config: DIYConfig, dtype: torch.dtype = torch.float64, seed: int = 0
) -> diy_torch.DIYForCausalLM:
    weights, names = random_weights(config, seed), {t.hf: t.torch for t in tensors(config)}
    model = diy_torch.DIYForCausalLM(config)
    assign_weights(
        model,
        ((names[hf], array) for hf, array in weights.items()),
        dtype,
        None,
        tied=config.tie_word_embeddings,
    )
    return model


def run(model: diy_torch.DIYForCausalLM, *args: Any, **kwargs: Any) -> Array:
    """Logits as numpy, no gradients."""
    with torch.no_grad():
        return to_numpy(model(*args, **kwargs))


def run_cached(
    model: diy_torch.DIYForCausalLM, *args: Any, **kwargs: Any
) -> tuple[Array, diy_torch.PastKeyValues]:
    """Logits as numpy, and the new cache; no gradients."""
    with torch.no_grad():
        logits, presents = model(*args, use_cache=True, **kwargs)
    return to_numpy(logits), presents
