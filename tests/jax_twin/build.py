"""Models of the Flax twin with random weights, and their logits as numpy."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import diy_jax
from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_jax.tensors import build_params
from tests.oracles import Array, random_weights


@dataclasses.dataclass
class Built:
    """A model with its params, called like a function, eagerly."""

    model: diy_jax.DIYForCausalLM
    params: dict[str, Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.apply({"params": self.params}, *args, **kwargs)


def build(config: DIYConfig, dtype: Any = jnp.float64, seed: int = 0) -> Built:
    weights, by_name = random_weights(config, seed), {t.hf: t for t in tensors(config)}
    params = build_params(((by_name[hf], array) for hf, array in weights.items()), dtype)
    return Built(diy_jax.DIYForCausalLM(config, dtype=dtype, param_dtype=dtype), params)


@partial(jax.jit, static_argnames=("model", "use_cache", "logits_to_keep"))
def _compiled(model: diy_jax.DIYForCausalLM, params: Any, *args: Any, **kwargs: Any) -> Any:
    return model.apply({"params": params}, *args, **kwargs)


def run(model: Built, *args: Any, **kwargs: Any) -> Array:
    """Logits as numpy, compiled: once per config and shape, which is cheaper than eagerly."""
    return np.array(_compiled(model.model, model.params, *args, **kwargs))


def run_cached(model: Built, *args: Any, **kwargs: Any) -> tuple[Array, diy_jax.PastKeyValues]:
    """Logits as numpy, and the new cache, compiled: the cache does not grow by itself here."""
    logits, presents = _compiled(model.model, model.params, *args, use_cache=True, **kwargs)
    return np.array(logits), presents


def run_eagerly(model: Built, *args: Any, **kwargs: Any) -> tuple[Array, diy_jax.PastKeyValues]:
    """Logits as numpy, and the new cache, which grows where it is full."""
    logits, presents = model(*args, use_cache=True, **kwargs)
    return np.array(logits), presents
