"""The twins' random numbers against `jax.random` as it starts."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import diy_jax.random
import diy_torch.random
from tests.oracles import Array

SEEDS = [0, 1, 2**31, 2**32 - 1]
LARGE_SEEDS = [2**32, 2**40 + 3, 2**63 - 1]  # jax.random needs 64-bit mode for these
SHAPES = [(), (0,), (1,), (7,), (3, 5, 11), (2, 0, 4), (70_001,), (2, 3, 200_003), (0, 2**33)]


def keys(seed: int) -> tuple[Any, Any, Any]:
    """The key of JAX, of the JAX twin, of the torch twin."""
    return jax.random.key(seed), diy_jax.random.key(seed), diy_torch.random.key(seed)


def same(theirs: Any, jax_s: Any, torch_s: torch.Tensor) -> None:
    expected = np.array(theirs)
    for ours in (np.array(jax_s), torch_s.numpy()):
        assert ours.dtype == expected.dtype
        assert ours.shape == expected.shape
        assert ours.tobytes() == expected.tobytes()


def near(theirs: Any, *ours: Array) -> None:
    """Equal but for the rounding of two logarithms."""
    expected = np.array(theirs)
    for values in ours:
        assert values.dtype == expected.dtype
        unit = np.finfo(expected.dtype).eps * np.maximum(1, abs(expected))
        assert (abs(values - expected) <= 3 * unit).all()


@pytest.mark.parametrize("seed", SEEDS + LARGE_SEEDS)
def test_keys_are_those_of_jax(seed: int) -> None:
    with jax.enable_x64(seed in LARGE_SEEDS):
        theirs, of_jax, of_torch = keys(seed)
        same(jax.random.key_data(theirs), of_jax, of_torch)
        for data in (0, 1, 2**31, 2**32 - 1):
            folded = jax.random.fold_in(theirs, np.uint32(data))
            of_both = diy_jax.random.fold_in(of_jax, data), diy_torch.random.fold_in(of_torch, data)
            same(jax.random.key_data(folded), *of_both)
        for n in (0, 1, 2, 7):
            parts = diy_jax.random.split(of_jax, n), diy_torch.random.split(of_torch, n)
            same(jax.random.key_data(jax.random.split(theirs, n)), *parts)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbers_are_those_of_jax(seed: int, shape: tuple[int, ...]) -> None:
    theirs, of_jax, of_torch = keys(seed)

    def both(name: str, *args: Any) -> tuple[Any, Any]:
        return tuple(
            getattr(module, name)(key, *args)
            for module, key in ((diy_jax.random, of_jax), (diy_torch.random, of_torch))
        )

    same(jax.random.bits(theirs, shape, jnp.uint32), *both("bits", shape))
    same(jax.random.uniform(theirs, shape), *both("uniform", shape))
    for p in (0.0, 0.1, 0.5, 1.0):
        same(jax.random.bernoulli(theirs, p, shape), *both("bernoulli", p, shape))
    of_both = both("gumbel", shape)
    near(jax.random.gumbel(theirs, shape), np.array(of_both[0]), of_both[1].numpy())
    with jax.enable_x64(True):
        uniform = diy_torch.random.uniform(of_torch, shape, torch.float64)
        same(
            jax.random.uniform(theirs, shape, jnp.float64),
            diy_jax.random.uniform(of_jax, shape, jnp.float64),
            uniform,
        )
        noise = diy_torch.random.gumbel(of_torch, shape, torch.float64)
        near(
            jax.random.gumbel(theirs, shape, jnp.float64),
            np.array(diy_jax.random.gumbel(of_jax, shape, jnp.float64)),
            noise.numpy(),
        )


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    seed=st.integers(0, 2**64 - 1),
    data=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(), (5,), (3, 1, 4), (2, 0)]),  # each is compiled once
)
def test_the_twins_agree_on_any_key_number_and_shape(
    seed: int, data: int, shape: tuple[int, ...]
) -> None:
    of_jax = diy_jax.random.fold_in(diy_jax.random.key(seed), data)
    of_torch = diy_torch.random.fold_in(diy_torch.random.key(seed), data)
    theirs = jax.random.wrap_key_data(of_jax, impl="threefry2x32")
    words = [seed >> 32, seed & 0xFFFFFFFF]
    root = jax.random.wrap_key_data(np.array(words, np.uint32), impl="threefry2x32")
    same(jax.random.key_data(jax.random.fold_in(root, np.uint32(data))), of_jax, of_torch)
    same(
        jax.random.bits(theirs, shape, jnp.uint32),
        diy_jax.random.bits(of_jax, shape),
        diy_torch.random.bits(of_torch, shape),
    )


@pytest.mark.parametrize("axis", [-1, 0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_categorical_draws_what_jax_draws(axis: int, dtype: str) -> None:
    logits = np.random.default_rng(0).normal(size=(40, 50, 60)).astype(dtype) * 3
    logits[:, 3] = -np.inf
    with jax.enable_x64(dtype == "float64"):
        for seed in (0, 5):
            theirs, of_jax, of_torch = keys(seed)
            expected = np.array(jax.random.categorical(theirs, jnp.asarray(logits), axis))
            drawn = np.array(diy_jax.random.categorical(of_jax, jnp.asarray(logits), axis))
            tensor = torch.from_numpy(logits)
            assert (drawn == expected).all()
            assert (diy_torch.random.categorical(of_torch, tensor, axis).numpy() == expected).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 1 / 3])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_dropout_gives_the_same_bits(rate: float, dtype: str) -> None:
    values = np.random.default_rng(0).normal(size=(30, 7, 41))
    with jax.enable_x64(dtype == "float64"):
        _, of_jax, of_torch = keys(3)
        x = jnp.asarray(values).astype(dtype)
        tensor = torch.from_numpy(values).to(getattr(torch, dtype))
        one = diy_torch.random.dropout(of_torch, tensor, rate)
        for call in (diy_jax.random.dropout, jax.jit(diy_jax.random.dropout, static_argnums=2)):
            other = np.array(call(of_jax, x, rate).astype(jnp.dtype(_wide(dtype))))
            assert (one.to(getattr(torch, _wide(dtype))).numpy() == other).all()


def _wide(dtype: str) -> str:
    """What numpy can compare."""
    return "float64" if dtype == "float64" else "float32"
