"""Loading a checkpoint of any kind, and saving a Hugging Face directory."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import any_dtype, rounded
from diy_core.checkpoints.hf_writer import MAX_SHARD_SIZE, HFWriter
from diy_core.checkpoints.interface import Reader, Stored
from diy_core.checkpoints.memory_reader import MemoryReader
from diy_core.checkpoints.opening import READERS, open_with
from diy_core.checkpoints.transfer import transfer
from diy_core.mapping import Tensor, tensors, unflatten
from diy_core.notes import refuse, settle
from diy_jax.given_weights import given_weights

if TYPE_CHECKING:
    from diy_jax.model import DIYForCausalLM

    Model = TypeVar("Model", bound=DIYForCausalLM)


def load(
    cls: type[Model],
    path: str | Path,
    dtype: Any,
    verify: bool = False,
    strict: bool = False,
    config: str | Path | None = None,
) -> tuple[Model, dict[str, Any]]:
    """A model with the config, and params with the weights, of a checkpoint."""
    checkpoint = open_with(path, {**READERS, "orbax": _open_orbax}, config=config)
    refuse(path, checkpoint.notes, strict=strict)
    by_name = {tensor.hf: tensor for tensor in tensors(checkpoint.config)}
    named = ((by_name[name], array) for name, array in checkpoint.read_all(verify))
    params = build_params(named, dtype)
    settle(path, checkpoint.notes, strict=strict, stacklevel=4)
    dtype = params["model"]["embed_tokens"]["embedding"].dtype
    return cls(checkpoint.config, dtype=dtype, param_dtype=dtype), params


def _open_orbax(path: Path, **options: Any) -> Reader:
    from diy_jax.orbax_store import OrbaxReader  # other kinds do without Orbax

    return OrbaxReader(path, **options)


def save(
    model: DIYForCausalLM,
    path: str | Path,
    params: Any,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> None:
    """Write config and params as a Hugging Face directory, a tensor at a time.

    What the params hold besides the model's weights is left out, with a note.

    Raises:
        CheckpointError: params that are not those of this config.
    """
    notes: list[str] = []
    flat = given_weights(params, model.config, left_out=notes)
    by_name = {tensor.hf: tensor for tensor in tensors(model.config)}
    stored = {
        name: Stored(tensor.shape, np.dtype(flat[tensor.flax].dtype))
        for name, tensor in by_name.items()
    }

    def fetch(name: str) -> NDArray[Any]:
        return by_name[name].to_flax.inverse(to_numpy(flat[by_name[name].flax]))

    refuse("params", notes)  # before anything is written, where notes are refused
    source = MemoryReader(str(path), model.config, stored, fetch)
    transfer(source, functools.partial(HFWriter, path, max_shard_size=max_shard_size), verify=False)
    settle("params", notes, stacklevel=4)


def build_params(named: Iterable[tuple[Tensor, NDArray[Any]]], dtype: Any) -> dict[str, Any]:
    """Params out of arrays in the torch layout, one after the other."""
    dtype = None if dtype is None else float_dtype(dtype)
    return unflatten(
        {tensor.flax: to_array(tensor.to_flax(array), dtype) for tensor, array in named}
    )


def float_dtype(dtype: Any) -> np.dtype[Any]:
    """A dtype that weights may have, of whichever library, or its name: `float32`, `bfloat16`, ...

    Raises:
        ValueError: it is none, or weights cannot have it.
    """
    return any_dtype(dtype)


def require_held(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype, which JAX can hold.

    Raises:
        ValueError: float64, and JAX has it switched off; it would silently cut it.
    """
    if dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            "float64 needs JAX's 64-bit mode: jax.config.update('jax_enable_x64', True), or a "
            "`with jax.enable_x64(True):` block"
        )
    return dtype


def to_numpy(array: Any) -> NDArray[Any]:
    """An array's values as numpy; bfloat16 is `ml_dtypes.bfloat16`."""
    return np.asarray(array)


def to_array(array: NDArray[Any], dtype: Any = None) -> jax.Array:
    """A numpy array as a JAX array with memory of its own, of the given dtype or its own.

    Raises:
        ValueError: float64 is asked for and JAX has it switched off; it would silently cut it.
    """
    wanted = require_held(np.dtype(array.dtype if dtype is None else dtype))
    return jnp.array(rounded(array, wanted))
