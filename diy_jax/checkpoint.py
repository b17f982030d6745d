"""Loading a checkpoint of any kind, and saving a Hugging Face directory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from flax import linen as nn
from numpy.typing import NDArray

from diy_core.checkpoints.hf.writer import MAX_SHARD_SIZE, HFWriter
from diy_core.checkpoints.interface import Reader, Stored
from diy_core.checkpoints.memory_reader import MemoryReader
from diy_core.checkpoints.opening import READERS, open_with
from diy_core.checkpoints.transfer import transfer
from diy_core.config import DIYConfig
from diy_core.mapping import tensors
from diy_core.notes import refuse, settle
from diy_jax.given_weights import given_weights
from diy_jax.tensors import build_params, to_numpy

Model = TypeVar("Model", bound=nn.Module)


def load(
    build: Callable[[DIYConfig, Any], Model],
    path: str | Path,
    dtype: Any,
    verify: bool = False,
    strict: bool = False,
    config: str | Path | None = None,
) -> tuple[Model, dict[str, Any]]:
    """A model with the config, and params with the weights, of a checkpoint.

    Args:
        build: the model of a config and a dtype.
        path: and the others, of `DIYForCausalLM.from_pretrained`.
    """
    checkpoint = open_with(path, {**READERS, "orbax": _open_orbax}, config=config)
    refuse(path, checkpoint.notes, strict=strict)
    by_name = {tensor.hf: tensor for tensor in tensors(checkpoint.config)}
    named = ((by_name[name], array) for name, array in checkpoint.read_all(verify))
    params = build_params(named, dtype)
    settle(path, checkpoint.notes, strict=strict, stacklevel=4)
    dtype = params["model"]["embed_tokens"]["embedding"].dtype
    return build(checkpoint.config, dtype), params


def _open_orbax(path: Path, **options: Any) -> Reader:
    from diy_jax.orbax_store import OrbaxReader  # other kinds do without Orbax

    return OrbaxReader(path, **options)


def save(
    weights: Any,
    config: DIYConfig,
    path: str | Path,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Write config and params as a Hugging Face directory, a tensor at a time.

    What the params hold besides the model's weights is left out, with a note.

    Raises:
        CheckpointError: params that are not those of this config.
    """
    notes: list[str] = []
    flat = given_weights(weights, config, left_out=notes)
    by_name = {tensor.hf: tensor for tensor in tensors(config)}
    stored = {
        name: Stored(tensor.shape, np.dtype(flat[tensor.flax].dtype))
        for name, tensor in by_name.items()
    }

    def fetch(name: str) -> NDArray[Any]:
        return by_name[name].to_flax.inverse(to_numpy(flat[by_name[name].flax]))

    refuse("params", notes)  # before anything is written, where notes are refused
    source = MemoryReader(str(path), config, stored, fetch)
    transfer(source, functools.partial(HFWriter, path, max_shard_size=max_shard_size), verify=False)
    settle("params", notes, stacklevel=4)
