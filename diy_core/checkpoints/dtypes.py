"""The float dtypes of checkpoints: names, casts, sums, and values that are not finite.

All work in pieces of a few megabytes, so that no tensor is held twice for the sake of a check.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from diy_core.errors import CheckpointError, listed

FLOATS = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
FLOAT_NAMES = {str(dtype): name for name, dtype in FLOATS.items()}  # "float32" is "F32"
# What others call them; `auto` of transformers is None here.
_OTHER_NAMES = {
    **dict.fromkeys(("bf16", "BF16"), "bfloat16"),
    **dict.fromkeys(("fp16", "f16", "F16", "half"), "float16"),
    **dict.fromkeys(("fp32", "f32", "F32", "float", "single"), "float32"),
    **dict.fromkeys(("fp64", "f64", "F64", "double"), "float64"),
}
_PIECE = 1 << 20  # elements
_TILE = 64  # rows and columns
_EXPONENT = {"float16": 0x7C00, "bfloat16": 0x7F80}  # the bits of the exponent


def dtype_of(name: str) -> np.dtype[Any]:
    """The dtype called `float32`, `bfloat16`, ...

    Raises:
        ValueError: no float dtype of checkpoints has this name.
    """
    if name not in FLOAT_NAMES:
        near = f" (did you mean {_OTHER_NAMES[name]}?)" if name in _OTHER_NAMES else ""
        raise ValueError(
            f"dtype {name!r} is not supported; choose one of {listed(sorted(FLOAT_NAMES))}{near}"
        )
    return FLOATS[FLOAT_NAMES[name]]


def any_dtype(dtype: Any) -> np.dtype[Any]:
    """A dtype that weights may have, of whichever library: `torch.bfloat16`, `jnp.bfloat16`, ...

    Args:
        dtype: of torch, JAX, numpy or ml_dtypes, or its name, such as `bfloat16`.

    Raises:
        ValueError: it is none, or weights cannot have it.
    """
    if isinstance(dtype, str):
        return dtype_of(dtype.removeprefix("torch."))
    name = str(dtype).removeprefix("torch.")
    if type(dtype).__module__.partition(".")[0] == "torch" and name in FLOAT_NAMES:
        return dtype_of(name)
    if hasattr(dtype, "shape") and not isinstance(dtype, (np.dtype, type)):
        raise ValueError(
            f"dtype must be a dtype, got an array or tensor: pass its dtype {dtype.dtype}"
        )
    if isinstance(dtype, np.dtype) or callable(dtype):  # a class, as those of numpy and JAX are
        with contextlib.suppress(TypeError):  # it is none that numpy knows
            name = str(np.dtype(dtype))
    return dtype_of(name)


def fault_of_dtype(dtype: object) -> str | None:
    """What is wrong with weights of a dtype of any library that is not a float; None: nothing."""
    name = str(dtype).removeprefix("torch.")
    if name in FLOAT_NAMES:
        return None
    return f"is {name}, and weights are floats: dequantise or convert it first"


def fault_of_values(array: NDArray[Any]) -> str | None:
    """What is wrong with weights some of which are not finite; None: all are."""
    if not (count := not_finite(array)):
        return None
    first = np.argwhere(~np.isfinite(array))[0].tolist()
    return f"has {count} values that are not finite, first at {first}"


def not_finite(array: NDArray[Any]) -> int:
    """How many values of a float array are infinite or not a number."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.itemsize > 2:
        return sum(
            piece.size - int(np.count_nonzero(np.isfinite(piece))) for piece in _pieces(flat)
        )
    # numpy is slow on these: an exponent of all ones is infinite or not a number.
    mask = np.uint16(_EXPONENT[str(array.dtype)])
    bits = flat.view(np.uint16)
    return sum(int(np.count_nonzero((piece & mask) == mask)) for piece in _pieces(bits))


def cast(array: NDArray[Any], dtype: np.dtype[Any], name: str, where: object) -> NDArray[Any]:
    """The array in another float dtype, rounded to nearest.

    Raises:
        CheckpointError: finite values that the dtype cannot hold and would turn into infinity.
    """
    if array.dtype == dtype:
        return array
    result = rounded(array, dtype)
    if ml_dtypes.finfo(array.dtype).max > ml_dtypes.finfo(dtype).max and (
        count := not_finite(result)
    ):
        raise CheckpointError(
            where,
            f"tensor {name} has {count} values too large for {dtype} "
            f"(at most {float(ml_dtypes.finfo(dtype).max):.4g}): keep a wider dtype",
        )
    return result


def rounded(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The array in another float dtype: each value rounded to nearest, ties to even, and once.

    Values that are too large become infinite.
    """
    with np.errstate(over="ignore"):
        if array.dtype == np.float64 and dtype == FLOATS["BF16"]:
            array = _rounded_to_odd(array)
        return array.astype(dtype, copy=False)


def _rounded_to_odd(array: NDArray[Any]) -> NDArray[np.float32]:
    """float64 as float32 whose last bit says that something was cut off.

    ml_dtypes goes to bfloat16 by way of float32, and a tie there may come from the first rounding:
    an odd last bit keeps such a value off the tie. Source: S. Boldo and G. Melquiond, "Emulation of
    a FMA and correctly rounded sums", IEEE Transactions on Computers 57 (2008).
    """
    array = np.ascontiguousarray(array)
    nearest = array.astype(np.float32)
    flat = (array.reshape(-1), nearest.reshape(-1), nearest.view(np.uint32).reshape(-1))
    for wide, narrow, bits in zip(*map(_pieces, flat), strict=True):
        cut = (wide != narrow) & (bits & 1 == 0) & ~np.isnan(wide)
        beyond = np.abs(wide) > np.abs(narrow)
        bits += cut & beyond
        bits -= cut & ~beyond
    return nearest


def sha256(array: NDArray[Any]) -> str:
    """The hex digest of a tensor's bytes, in C order and little-endian."""
    return hashlib.sha256(as_bytes(array)).hexdigest()


def as_bytes(array: NDArray[Any]) -> memoryview:
    """The bytes of an array, in C order; no copy where it lies so already."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def contiguous(array: NDArray[Any]) -> NDArray[Any]:
    """The array in C order; a transposed matrix is copied tile by tile.

    A row of the result is a column of the source, so numpy's own copy misses the cache at every
    element: tiles that fit are five times as fast.
    """
    if array.ndim != 2 or array.flags.c_contiguous:
        return np.ascontiguousarray(array)
    source = array.view(f"u{array.itemsize}")  # numpy moves bfloat16 one by one
    result = np.empty(source.shape, source.dtype)
    for i in range(0, source.shape[0], _TILE):
        for j in range(0, source.shape[1], _TILE):
            tile = slice(i, i + _TILE), slice(j, j + _TILE)
            result[tile] = source[tile]
    return result.view(array.dtype)


def same_bits(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays have the same dtype, shape and bytes."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    left, right = np.frombuffer(as_bytes(one), np.uint8), np.frombuffer(as_bytes(other), np.uint8)
    return all(np.array_equal(a, b) for a, b in zip(_pieces(left), _pieces(right), strict=True))


def same_values(one: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two arrays have the same shape and values, in whatever float dtypes."""
    if one.shape != other.shape:
        return False
    left, right = (_pieces(np.ascontiguousarray(array).reshape(-1)) for array in (one, other))
    return all(
        np.array_equal(a.astype(np.float64), b.astype(np.float64))
        for a, b in zip(left, right, strict=True)
    )


def _pieces(flat: NDArray[Any]) -> Iterator[NDArray[Any]]:
    for start in range(0, flat.size, _PIECE):
        yield flat[start : start + _PIECE]
