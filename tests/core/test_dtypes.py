"""Casts, sums and checks of values, against torch, hashlib and numpy."""

from __future__ import annotations

import hashlib
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch

from diy_core import CheckpointError
from diy_core.checkpoints import dtypes
from diy_core.checkpoints.dtypes import (
    any_dtype,
    as_bytes,
    cast,
    contiguous,
    dtype_of,
    not_finite,
    same_bits,
    sha256,
)
from tests.tiny_checkpoints import DTYPES

BITS = {"float64": np.uint64, "float32": np.uint32, "float16": np.uint16, "bfloat16": np.uint16}


def draw(name: str, *shape: int) -> Any:
    return np.random.default_rng(0).normal(size=shape).astype(DTYPES[name])


def test_dtypes_have_the_names_that_people_write() -> None:
    assert {name: dtype_of(name) for name in DTYPES} == DTYPES
    with pytest.raises(ValueError, match=r"'int8' is not supported; choose one of bfloat16, "):
        dtype_of("int8")


@pytest.mark.parametrize(
    ("name", "meant"),
    [("bf16", "bfloat16"), ("fp16", "float16"), ("half", "float16"), ("F32", "float32")],
)
def test_other_names_of_a_dtype_are_told_the_one_here(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=rf"{name!r} is not.* float64 \(did you mean {meant}\?\)$"):
        dtype_of(name)


def test_dtypes_of_any_library_are_taken_and_others_named() -> None:
    for name, dtype in DTYPES.items():
        given = (dtype, dtype.type, getattr(torch, name), getattr(jnp, name), name, f"torch.{name}")
        assert {any_dtype(one) for one in given} == {dtype}
    for other in (torch.int8, np.int8, jnp.int8, "int8"):
        with pytest.raises(ValueError, match="'int8' is not supported"):
            any_dtype(other)
    for array in (torch.zeros(2), jnp.zeros(2), np.zeros(2, np.float32)):
        with pytest.raises(ValueError, match=r"got an array or tensor: pass its dtype \S*float32"):
            any_dtype(array)
    with pytest.raises(ValueError, match="dtype '16' is not supported"):
        any_dtype(16)


@pytest.mark.parametrize("piece", [1, 7, 29, 30, 1 << 20])
@pytest.mark.parametrize("name", DTYPES)
def test_values_that_are_not_finite_are_counted(
    name: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "_PIECE", piece)
    array = draw(name, 5, 6)
    assert not_finite(array) == 0
    array[0, 1], array[3, 3], array[4, 5] = np.nan, np.inf, -np.inf
    assert not_finite(array) == not_finite(array.T) == 3
    assert not_finite(array[:, :3]) == not_finite(array[4, 5:]) == 1


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_every_number_of_16_bits_is_judged_as_numpy_judges_it(name: str) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(DTYPES[name])
    with np.errstate(all="ignore"):
        wide = every.astype(np.float64)
    assert not_finite(every) == np.count_nonzero(~np.isfinite(wide)) > 0
    assert not_finite(every[np.isfinite(wide)]) == 0


@pytest.mark.parametrize("to", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", DTYPES)
def test_a_cast_rounds_as_torch_does(name: str, to: str) -> None:
    """Random numbers, halves between two neighbours, subnormal ones, both zeros."""
    wide = np.random.default_rng(0).normal(size=2000) * 10.0 ** np.arange(-9, 1).repeat(200)
    halves = 1 + np.arange(64) * 2.0**-12
    array = np.concatenate([wide, halves, -halves, [0.0, -0.0, 6e-8, 60000.0]]).astype(DTYPES[name])
    if name == "bfloat16":
        source = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        source = torch.from_numpy(array)
    expected = source.to(getattr(torch, to))
    found = cast(array, DTYPES[to], "x", "y")
    assert str(found.dtype) == to
    unsigned = {8: torch.int64, 4: torch.int32, 2: torch.int16}[DTYPES[to].itemsize]
    assert found.tobytes() == expected.view(unsigned).numpy().tobytes()


def test_float64_is_rounded_to_bfloat16_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers just off the middle of two neighbours, which float32 would put on it."""
    monkeypatch.setattr(dtypes, "_PIECE", 1000)
    with np.errstate(invalid="ignore"):
        every = np.arange(1 << 15, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float64)
    grid = every[np.isfinite(every)]
    middles = (grid[:-1] + grid[1:]) / 2
    near = [np.nextafter(middles, toward) for toward in (0, np.inf)]
    near += [middles * (1 + sign * 2.0**-bits) for sign in (1, -1) for bits in (26, 40, 52)]
    wide = np.concatenate([middles, *near, grid, grid[1:] * 0.999, [5e-324, 1e-45]])
    wide = np.concatenate([wide, -wide])
    places = np.clip(np.searchsorted(grid, np.abs(wide), "right") - 1, 0, len(grid) - 2)
    below, above = np.abs(wide) - grid[places], grid[places + 1] - np.abs(wide)  # both exact
    up = (above < below) | ((above == below) & (places % 2 == 1))
    expected = np.copysign(grid[places + up], wide)
    found = cast(wide, DTYPES["bfloat16"], "x", "y").astype(np.float64)
    assert np.array_equal(found, expected)
    assert np.array_equal(np.signbit(found), np.signbit(expected))


def test_what_is_not_finite_stays_so_when_it_is_rounded() -> None:
    wide = np.array([[np.nan, np.inf], [-np.inf, 1e308]])
    found = dtypes.rounded(wide.T, DTYPES["bfloat16"]).astype(np.float64)
    assert np.isnan(found[0, 0])
    assert found.ravel()[1:].tolist() == [-np.inf, np.inf, np.inf]


def test_a_cast_to_the_same_dtype_copies_nothing() -> None:
    array = draw("bfloat16", 3)
    assert cast(array, DTYPES["bfloat16"], "x", "y") is array


@pytest.mark.parametrize(
    ("name", "to", "largest"),
    [
        ("float32", "float16", 65504.0),
        ("bfloat16", "float16", 65280.0),
        ("float32", "bfloat16", float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)),
        ("float64", "bfloat16", float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)),
        ("float64", "float32", float(np.finfo(np.float32).max)),
    ],
)
def test_a_value_that_would_become_infinite_is_refused(name: str, to: str, largest: float) -> None:
    array = np.zeros((4, 3), DTYPES[name])
    array[1, 1], array[2, 2] = largest, -largest
    assert np.isfinite(cast(array, DTYPES[to], "w", "model").astype(np.float64)).all()
    array[0, 0], array[3, 1] = largest * 1.0035, -largest * 1.0035
    with pytest.raises(
        CheckpointError, match=rf"model: tensor w has 2 values too large for {to} \(at most "
    ):
        cast(array, DTYPES[to], "w", "model")


@pytest.mark.parametrize("name", DTYPES)
def test_a_sum_is_that_of_the_bytes_in_c_order(name: str) -> None:
    array = draw(name, 7, 5)
    expected = hashlib.sha256(array.tobytes()).hexdigest()
    assert sha256(array) == sha256(np.asfortranarray(array)) == expected
    assert sha256(array.T) == hashlib.sha256(array.T.tobytes()).hexdigest() != expected
    assert bytes(as_bytes(array)) == array.tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 130), (3, 200), (200, 3)])
@pytest.mark.parametrize("name", DTYPES)
def test_a_transposed_matrix_is_laid_out_anew(name: str, shape: tuple[int, int]) -> None:
    array = draw(name, *shape)
    for view in (array, array.T, array[:, ::2], np.asfortranarray(array)[::2]):
        found = contiguous(view)
        assert found.flags.c_contiguous
        assert found.dtype == view.dtype
        assert found.shape == view.shape
        assert found.tobytes() == view.tobytes()
    assert contiguous(array) is array
    assert contiguous(array[0, ::2]).tobytes() == array[0, ::2].tobytes()


@pytest.mark.parametrize("name", DTYPES)
def test_bits_are_compared_and_not_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes, "_PIECE", 16)
    array = draw(name, 6, 6)
    array[0, 0], array[0, 1] = 0.0, np.nan
    assert same_bits(array, array.copy())
    assert not same_bits(array[:1, :1], array[1:2, 1:2])
    assert same_bits(array.T, np.ascontiguousarray(array.T))
    assert not same_bits(array, array.T)
    assert not same_bits(array, array.reshape(4, 9))
    assert not same_bits(array, array.view(BITS[name]))
    for row, column, value in ((0, 0, -0.0), (5, 5, 9.0)):
        other = array.copy()
        other[row, column] = value
        assert not same_bits(array, other)
