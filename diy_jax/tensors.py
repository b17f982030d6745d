"""Between arrays of numpy and arrays of JAX; the dtypes that weights may have."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import any_dtype, rounded
from diy_core.mapping import Tensor, unflatten


def build_params(named: Iterable[tuple[Tensor, NDArray[Any]]], dtype: Any) -> dict[str, Any]:
    """Params out of arrays, one after the other.

    Args:
        named: each weight with its place in the table of names, in the layout of PyTorch.
        dtype: of the params, or its name; None keeps that of each array.

    Raises:
        ValueError: weights cannot have that dtype.
    """
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
