"""Whatever holds numbers becomes one kind of array, and nothing is cut or guessed."""

from __future__ import annotations

from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from diy_core.arrays import as_host_array, renumbered, signed

ROWS = [[1, 2, 3], [4, 5, 6]]
WHOLE = np.array(ROWS)


@pytest.mark.parametrize(
    "value",
    [
        ROWS,
        tuple(map(tuple, ROWS)),
        [np.array(row) for row in ROWS],
        WHOLE.astype(">i4"),
        WHOLE[::-1, ::-1].copy()[::-1, ::-1],
        WHOLE.T.copy().T,
        np.asarray(torch.tensor(ROWS)),
        torch.tensor(ROWS),
        torch.tensor(ROWS, dtype=torch.float32),
        jax.numpy.asarray(ROWS),
        WHOLE.astype(ml_dtypes.int4),
        WHOLE.astype(ml_dtypes.bfloat16),
        WHOLE.astype(np.longdouble),
        WHOLE.astype(np.uint64),
        memoryview(WHOLE),
    ],
    ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
)
def test_every_framework_takes_what_comes_out(value: Any) -> None:
    array = as_host_array("input_ids", value)
    assert array.tolist() == ROWS
    assert array.flags.c_contiguous
    assert array.flags.writeable
    assert array.dtype.isnative
    assert torch.as_tensor(signed(array)).tolist() == ROWS
    assert jax.numpy.asarray(array).tolist() == ROWS


def test_a_typed_key_becomes_its_words() -> None:
    key = jax.random.key(7)
    assert as_host_array("dropout_key", key).tolist() == jax.random.key_data(key).tolist()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.ma.masked_array(ROWS, mask=False), "is a masked array, whose mask means nothing"),
        ([np.ma.masked_array([1, 2], mask=[0, 1])], "is a masked array"),
        ([[1, 2], [3]], "rows of different lengths or other objects: wrap them"),
        ([[1, None]], "rows of different lengths or other objects"),
        (None, "got None: wrap them"),
        ([[2**70]], "integers of more than 64 bits"),
        (np.array([[2**70]]), "integers of more than 64 bits"),
        (WHOLE.astype(complex), "must hold numbers, got dtype complex128"),
        (WHOLE.astype("m8[s]"), "must hold numbers, got dtype timedelta64"),
        (np.zeros(2, [("a", int)]), "must hold numbers, got dtype"),
        ([["hi"]], "must hold token ids, got text"),
        ([[b"hi"]], "must hold token ids, got text"),
        (torch.ones(2, requires_grad=True), "must be an array or lists of numbers, got Tensor"),
        (torch.ones(2, device="meta"), "must be an array or lists of numbers, got Tensor"),
        (object(), "rows of different lengths or other objects"),
        (iter(ROWS), "rows of different lengths or other objects"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_anything_else_is_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as raised:
        as_host_array("input_ids", value, "wrap them")
    assert str(raised.value).startswith("input_ids ")


def test_ids_that_32_bits_cannot_hold_are_numbered_anew() -> None:
    hashes = np.array([[2**63 + 5, 2**63 + 5, 3], [3, 5, 2**63 + 5]], np.uint64)
    assert renumbered(hashes).tolist() == [[2, 2, 0], [0, 1, 2]]
    assert renumbered(np.array([0, -(2**32)])).tolist() == [1, 0]


@pytest.mark.parametrize("value", [[2**31 - 1, -(2**31)], [0.5, 1e20], [True, False], []])
def test_all_others_keep_their_numbers(value: Any) -> None:
    assert renumbered(np.array(value)) is not None
    assert renumbered(np.array(value)).tolist() == value


def test_unsigned_ids_that_no_int64_holds_stay_out_of_range() -> None:
    assert signed(np.array([2**64 - 1, 7], np.uint64)).tolist() == [2**63 - 1, 7]
