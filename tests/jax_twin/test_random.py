"""threefry against its authors' vectors, whatever JAX's flags; tests/parity has `jax.random`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diy_jax import random

pytestmark = pytest.mark.usefixtures("strict")

ONES = 0xFFFFFFFF
# Random123 1.14, tests/kat_vectors: threefry2x32, 20 rounds. Counter, key, result.
VECTORS = [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((ONES, ONES), (ONES, ONES), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
]
KEY = random.key(5)
FLAGS: list[dict[str, Any]] = [
    {"jax_threefry_partitionable": False},
    {"jax_default_prng_impl": "rbg"},
    {"jax_random_seed_offset": 7},
    {"jax_enable_x64": True},
    {"jax_enable_custom_prng": True},
    {"jax_high_dynamic_range_gumbel": True},
]


def words(*values: int) -> jax.Array:
    return jnp.asarray(np.array(values, np.uint32))


@contextlib.contextmanager
def flags(values: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize(("counter", "key", "result"), VECTORS)
def test_the_hash_gives_the_published_vectors(
    counter: tuple[int, int], key: tuple[int, int], result: tuple[int, int]
) -> None:
    high, low = random.threefry2x32(words(*key), words(counter[0]), words(counter[1]))
    assert (high.tolist(), low.tolist()) == ([result[0]], [result[1]])


def everything(key: Any) -> dict[str, Any]:
    return {
        "fold_in": random.fold_in(key, 3),
        "split": random.split(key, 3),
        "bits": random.bits(key, (3, 5)),
        "uniform": random.uniform(key, (3, 5)),
        "bernoulli": random.bernoulli(key, 0.3, (3, 5)),
        "gumbel": random.gumbel(key, (3, 5)),
        "categorical": random.categorical(key, jnp.zeros((3, 5), jnp.float32)),
        "dropout": random.dropout(key, jnp.ones((3, 5), jnp.float32), 0.3),
    }


@pytest.mark.parametrize("change", FLAGS, ids=lambda change: next(iter(change)))
def test_no_flag_changes_a_bit(change: dict[str, Any]) -> None:
    eagerly = "jax_threefry_partitionable" in change  # to compile each call takes longer
    call = everything if eagerly else jax.jit(everything)
    before = call(random.key(5))
    with flags(change):
        after = call(random.key(5))
        assert random.key(2**40 + 1).tolist() == [2**8, 1]
    for name, value in before.items():
        assert (np.array(after[name]) == np.array(value)).all(), name
        assert after[name].dtype == value.dtype or name == "categorical"


def test_typed_keys_and_keys_that_are_traced_draw_the_same() -> None:
    expected = everything(KEY)
    typed = jax.random.wrap_key_data(KEY, impl="threefry2x32")
    for key in (typed, np.array(KEY)):
        for call in (everything, jax.jit(everything)):
            for name, value in call(key).items():
                # Compiled in one piece, logarithms may be rounded otherwise.
                assert np.allclose(value, expected[name], rtol=1e-6, atol=1e-6), name
                assert name == "gumbel" or (np.array(value) == np.array(expected[name])).all()
    rows = jax.vmap(lambda number: random.bits(random.fold_in(KEY, number), (4,)))(jnp.arange(3))
    both = jax.vmap(lambda key, number: random.bits(random.fold_in(key, number), (4,)))
    assert (both(jnp.stack([KEY] * 3), jnp.arange(3)) == rows).all()
    for number in range(3):
        assert rows[number].tolist() == random.bits(random.fold_in(KEY, number), (4,)).tolist()
    other = jax.random.key(0, impl="rbg")
    with pytest.raises(ValueError, match="a typed key must be of threefry2x32, got rbg"):
        random.bits(other)


@pytest.mark.parametrize(
    ("seed", "high", "low"),
    [(0, 0, 0), (7, 0, 7), (2**32, 1, 0), (2**63 + 5, 2**31, 5), (2**64 - 1, ONES, ONES)],
)
def test_a_key_is_the_two_words_of_the_seed(seed: int, high: int, low: int) -> None:
    assert random.key(seed).tolist() == random.key(np.uint64(seed)).tolist() == [high, low]


def test_what_is_no_seed_no_number_and_no_key_is_refused() -> None:
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=rf"seed must lie in 0\.\.2\*\*64 - 1, got {seed}"):
            random.key(seed)
    for data in (-1, 2**32):
        with pytest.raises(ValueError, match=rf"data must lie in 0\.\.2\*\*32 - 1, got {data}"):
            random.fold_in(KEY, data)
    for wrong in (jnp.zeros(2), jnp.zeros(2, jnp.int32), words(1), words(1, 2, 3)):
        with pytest.raises(ValueError, match=r"a key is uint32 of shape \(2,\)"):
            random.bits(wrong, (3,))
    with pytest.raises(ValueError, match=r"p must lie in 0\.\.1, got 1\.5"):
        random.bernoulli(KEY, 1.5)
    with pytest.raises(ValueError, match=r"fewer than 2\*\*32 numbers, got shape \(65536, 65536\)"):
        random.bits(KEY, (2**16, 2**16))
    for dtype in (jnp.bfloat16, jnp.int32):
        for draw in (random.uniform, random.gumbel):
            with pytest.raises(ValueError, match="dtype must be float32 or float64"):
                draw(KEY, (2,), dtype)
    with pytest.raises(ValueError, match="float64 needs JAX's 64-bit mode"):
        random.uniform(KEY, (2,), jnp.float64)
    with pytest.raises(TypeError):
        random.key(1.0)


def test_a_number_depends_on_its_place_alone() -> None:
    many = random.bits(KEY, (3 << 16,)).tolist()
    assert random.bits(KEY, (3, 2, 1 << 15)).ravel().tolist() == many
    assert random.bits(KEY, (1000,)).tolist() == many[:1000]
    assert random.bits(KEY, (4, 0)).shape == (4, 0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dropout_keeps_its_share_and_the_mean(rate: float, dtype: Any) -> None:
    x = jnp.ones((300, 400), dtype)
    dropped = random.dropout(KEY, x, rate)
    assert dropped.dtype == dtype
    share = float((dropped == 0).mean())
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / x.size)
    kept = np.array(dropped[dropped != 0])
    assert (kept == np.array(1 / (1 - rate), dtype)).all()
    assert (dropped != random.dropout(random.key(6), x, rate)).any()


def test_what_is_dropped_has_no_influence_not_even_of_infinities() -> None:
    x = jnp.full(50, jnp.inf, jnp.float32)
    kept = random.dropout(KEY, x, 0.5) != 0
    gradient = jax.grad(lambda x: jnp.where(kept, 0, random.dropout(KEY, x, 0.5)).sum())(x)
    assert 0 < int(kept.sum()) < 50
    assert not gradient.any()
