"""Models of the Flax twin with random weights, and their logits as numpy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

import diy_jax
from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_jax.checkpoint import build_params
from tests.oracles import Array, random_weights


@dataclasses.dataclass
class Built:
    """A model with its params, called like a function."""

    model: diy_jax.DIYForCausalLM
    params: dict[str, Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.apply({"params": self.params}, *args, **kwargs)


def build(config: DIYConfig, dtype: Any = jnp.float64, seed: int = 0) -> Built:
    weights, by_name = random_weights(config, seed), {t.hf: t for t in tensors(config)}
    params = build_params(((by_name[hf], array) for hf, array in weights.items()), dtype)
    return Built(diy_jax.DIYForCausalLM(config, dtype=dtype, param_dtype=dtype), params)


def run(model: Built, *args: Any, **kwargs: Any) -> Array:
    """Logits as numpy."""
    return np.array(model(*args, **kwargs))


def run_cached(model: Built, *args: Any, **kwargs: Any) -> tuple[Array, diy_jax.PastKeyValues]:
    """Logits as numpy, and the new cache."""
    logits, presents = model(*args, use_cache=True, **kwargs)
    return np.array(logits), presents
