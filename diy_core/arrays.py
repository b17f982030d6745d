"""What users hand in as numbers, as a plain numpy array: once, so that both twins take the same."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

_INT32 = np.iinfo(np.int32)


def as_host_array(
    name: str,
    value: Any,
    advice: str = "pad the rows on the right and pass attention_mask or seq_lengths",
) -> NDArray[Any]:
    """Lists and arrays of any library as a numpy array that every framework takes.

    It is contiguous, writable, and in the byte order of this machine; numbers are as they were.

    Args:
        name: what messages call it.
        value: a list, an array, ...
        advice: to those who have rows of different lengths.

    Raises:
        ValueError: rows of different lengths, a masked array, something that is not an array, or
            does not hold real numbers.
    """
    _refuse_masked(name, value)
    try:
        array = np.asarray(_words_of_key(value))
    except (ValueError, TypeError, RuntimeError, OverflowError, BufferError) as error:
        if not isinstance(value, (list, tuple)):
            raise ValueError(
                f"{name} must be an array or lists of numbers, got {type(value).__name__}: {error}"
            ) from error
        array = np.asarray(None)
    if array.dtype == object:
        raise ValueError(f"{name} must be a rectangular array, got {_what(array, value)}: {advice}")
    if array.dtype.kind in "SU" and name.startswith("input_ids"):
        raise ValueError(
            f"{name} must hold token ids, got text; encode it first: "
            "Tokenizer.from_pretrained(DIR).encode(text)"
        )
    kind = array.dtype.kind
    if kind == "V" and array.dtype.names is None:  # bfloat16 and others that numpy does not know
        known = array.dtype.name.startswith(("int", "uint"))
        return array.astype(np.int64 if known else np.float32)
    if kind not in "biuf":
        raise ValueError(f"{name} must hold numbers, got dtype {array.dtype}")
    if array.dtype.itemsize > 8:  # a long double
        array = array.astype(np.float64)
    return np.require(array, array.dtype.newbyteorder("="), ["C", "W"])


def _refuse_masked(name: str, value: Any) -> None:
    rows = value if isinstance(value, (list, tuple)) else ()
    if any(isinstance(item, np.ma.MaskedArray) for item in (value, *rows)):
        raise ValueError(
            f"{name} is a masked array, whose mask means nothing here: pass its data, and "
            "attention_mask or seq_lengths"
        )


def _words_of_key(value: Any) -> Any:
    """The two words of a typed key of JAX; anything else as it is."""
    jax = sys.modules.get("jax")  # whoever holds such a key has imported it
    if jax is None or not isinstance(value, jax.Array):
        return value
    is_key = jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(value) if is_key else value


def _what(array: NDArray[Any], value: Any) -> str:
    items = array.ravel().tolist()
    if array.ndim and all(isinstance(item, int) for item in items):
        return "integers of more than 64 bits"
    if value is None or (array.ndim and all(item is None for item in items)):
        return "None"
    return "rows of different lengths or other objects"


def signed(array: NDArray[Any]) -> NDArray[Any]:
    """Unsigned integers as int64, with which torch computes; the largest, where they do not fit."""
    if array.dtype.kind != "u":
        return array
    return np.minimum(array, np.uint64(np.iinfo(np.int64).max)).astype(np.int64)


def renumbered(array: NDArray[Any]) -> NDArray[Any]:
    """Integers that 32 bits cannot hold, such as hashes of documents, by small ones: equal stay
    equal. All others as they are."""
    if array.dtype.kind not in "iu" or not array.size:
        return array
    if _INT32.min <= int(array.min()) and int(array.max()) <= _INT32.max:
        return array
    numbers = np.unique(array, return_inverse=True)[1]
    return numbers.reshape(array.shape).astype(np.int32)
