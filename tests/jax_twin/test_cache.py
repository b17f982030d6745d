from __future__ import annotations

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from diy_jax import PastKeyValues, grow_cache, init_cache
from diy_jax.cache import update_cache
from tests.jax_twin.build import build, run, run_cached, run_eagerly
from tests.oracles import Array, random_ids, tiny

pytestmark = pytest.mark.usefixtures("strict", "x64")

CONFIG = tiny(max_position_embeddings=100)
CAPACITY = 64


def filled(capacity: int = CAPACITY, batch: int = 4) -> dict[str, Array]:
    """One layer's key and value, random in every slot."""
    generator = np.random.default_rng(0)
    return {name: generator.normal(size=(batch, 2, capacity, 4)) for name in ("key", "value")}


def update(
    cached: dict[str, Array], position: list[int], new: dict[str, Array], lengths: list[int]
) -> tuple[dict[str, Array], list[int]]:
    present, positions = update_cache(
        {name: jnp.asarray(array) for name, array in cached.items()},
        jnp.asarray(position, jnp.int32),
        jnp.asarray(new["key"]),
        jnp.asarray(new["value"]),
        jnp.asarray(lengths, jnp.int32),
    )
    return {name: np.array(array) for name, array in present.items()}, positions.tolist()


@pytest.mark.parametrize(("max_length", "capacity"), [(1, 64), (64, 64), (65, 100), (100, 100)])
def test_capacities_are_powers_of_two_up_to_the_limit(max_length: int, capacity: int) -> None:
    past = init_cache(CONFIG, 3, max_length, jnp.bfloat16)
    assert len(past) == CONFIG.num_hidden_layers
    for cached, position in past:
        assert cached["key"].shape == cached["value"].shape == (3, 2, capacity, 4)
        assert cached["key"].dtype == cached["value"].dtype == jnp.bfloat16
        assert not cached["key"].any()
        assert not cached["value"].any()
        assert position.dtype == jnp.int32
        assert position.tolist() == [0, 0, 0]


def test_no_cache_reaches_beyond_max_position_embeddings() -> None:
    message = r"a sequence of 101 tokens is beyond max_position_embeddings \(100\)"
    with pytest.raises(ValueError, match=message):
        init_cache(CONFIG, 3, 101)
    with pytest.raises(ValueError, match=message):
        grow_cache(init_cache(CONFIG, 3), 101, 100)


@pytest.mark.parametrize("rows", [0, -1, True, np.True_])
def test_a_cache_has_rows(rows: int) -> None:
    words = f"batch_size must be an integer of at least 1, got {rows!r}"
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(init_cache)(CONFIG, rows)


@pytest.mark.parametrize("length", [-1, False, 8.0, None])
def test_the_room_of_a_cache_is_a_number_of_tokens(length: Any) -> None:
    words = f"max_length must be an integer of at least 0, got {length}"
    with pytest.raises(ValueError, match=words):
        inspect.unwrap(init_cache)(CONFIG, 2, length)


def test_sizes_may_be_integers_of_numpy() -> None:
    past = inspect.unwrap(init_cache)(CONFIG, np.int64(2), np.int32(65))
    assert past[0][0]["key"].shape == (2, 2, 100, 4)


@pytest.mark.parametrize("dtype", ["int32", "f4", "half", "float8_e4m3fn", "None"])
def test_a_dtype_that_weights_cannot_have_is_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="is not supported; choose one of bfloat16, float16, fl"):
        init_cache(CONFIG, 2, dtype=dtype)


def test_a_dtype_may_be_a_name() -> None:
    assert init_cache(CONFIG, 2, dtype="bfloat16")[0][0]["key"].dtype == jnp.bfloat16


def test_float64_that_jax_would_cut_is_refused() -> None:
    with jax.enable_x64(False), pytest.raises(ValueError, match="float64 needs JAX's 64-bit mode"):
        init_cache(CONFIG, 2, dtype="float64")


def test_a_cache_may_have_any_number_of_rows_while_it_is_exported() -> None:
    def key(ids: Any) -> Any:
        return inspect.unwrap(init_cache)(CONFIG, ids.shape[0], 4)[0][0]["key"]

    ids = jax.ShapeDtypeStruct(export.symbolic_shape("b, 4"), jnp.int32)
    (key_of_any,) = export.export(jax.jit(key))(ids).out_avals
    assert str(key_of_any.shape) == "(b, 2, 64, 4)"


def test_each_layer_has_memory_of_its_own() -> None:
    past = init_cache(CONFIG, 2)
    arrays = [a for cached, position in past for a in (*cached.values(), position)]
    pointers = {array.unsafe_buffer_pointer() for array in arrays}
    assert len(pointers) == 3 * CONFIG.num_hidden_layers


def test_growing_keeps_what_is_cached() -> None:
    old = {name: jnp.asarray(array) for name, array in filled().items()}
    position = jnp.asarray([1, 2, 64, 0], jnp.int32)
    past: PastKeyValues = [(old, position), (old, position)]
    assert grow_cache(past, 64, 256) is past
    for cached, positions in grow_cache(past, 65, 256):
        assert positions.tolist() == position.tolist()
        for name in ("key", "value"):
            assert cached[name].shape == (4, 2, 128, 4)
            assert (cached[name][:, :, :64] == old[name]).all()
            assert not cached[name][:, :, 64:].any()


# Rows in the middle, empty, ending exactly at the capacity, and full already.
POSITION, LENGTHS = [3, 5, 62, 64], [2, 0, 2, 0]


def test_padded_columns_leave_no_trace() -> None:
    before, new = filled(), filled(capacity=4)
    for array in new.values():
        for row, length in enumerate(LENGTHS):
            array[row, :, length:] = np.nan  # would be seen wherever it went
    expected = {name: array.copy() for name, array in before.items()}
    for name, array in expected.items():
        for row, (start, length) in enumerate(zip(POSITION, LENGTHS, strict=True)):
            array[row, :, start : start + length] = new[name][row, :, :length]
    after, positions = update(before, POSITION, new, LENGTHS)
    assert positions == [5, 5, 64, 64]
    for name in ("key", "value"):
        assert after[name].tobytes() == expected[name].tobytes()
        assert after[name].tobytes() != before[name].tobytes()


def test_every_value_gets_the_gradient_of_its_own_slot() -> None:
    """Padded columns get none; what is overwritten gets none; what stays gets its own."""
    before, new, weights = filled(), filled(capacity=4), filled()
    written = np.zeros((4, CAPACITY), bool)
    expected = {name: np.zeros_like(array) for name, array in new.items()}
    for row, (start, length) in enumerate(zip(POSITION, LENGTHS, strict=True)):
        written[row, start : start + length] = True
        for name, array in expected.items():
            array[row, :, :length] = weights[name][row, :, start : start + length]
    kept = np.where(written[:, None, :, None], 0, 1)

    def weighted(before: dict[str, Array], new: dict[str, Array]) -> Any:
        after, _ = update_cache(
            before,
            jnp.asarray(POSITION, jnp.int32),
            *new.values(),
            jnp.asarray(LENGTHS, jnp.int32),
        )
        return sum((after[name] * weights[name]).sum() for name in after)

    gradients = jax.grad(weighted, (0, 1))(before, new)
    for name in ("key", "value"):
        np.testing.assert_array_equal(gradients[1][name], expected[name])
        np.testing.assert_array_equal(gradients[0][name], weights[name] * kept)


def test_key_and_value_are_not_confused() -> None:
    after, _ = update(filled(), [0] * 4, new := filled(capacity=CAPACITY), [CAPACITY] * 4)
    assert (after["key"] == new["key"]).all()
    assert (after["value"] == new["value"]).all()


def test_writes_beyond_the_capacity_are_dropped() -> None:
    before, new = filled(), filled(capacity=4)
    after, _ = update(before, [63, 64, 70, 62], new, [4, 4, 4, 4])
    assert (after["key"][0, :, 63] == new["key"][0, :, 0]).all()
    assert (after["key"][0, :, :63] == before["key"][0, :, :63]).all()
    assert (after["key"][1:3] == before["key"][1:3]).all()
    assert (after["key"][3, :, 62:] == new["key"][3, :, :2]).all()


def test_layers_can_be_donated() -> None:
    past = init_cache(CONFIG, 2)
    run = jax.jit(lambda past: past, donate_argnums=0)
    run(past)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(past))


@pytest.mark.parametrize("position", [3, np.int32(3)])
def test_a_position_may_be_an_int_for_every_row(position: int) -> None:
    model, ids = build(CONFIG), random_ids(CONFIG, 2, 6)
    past = init_cache(CONFIG, 2, dtype=jnp.float64)
    _, past = run_cached(model, ids[:, :3], past_key_values=past)
    expected, _ = run_cached(model, ids[:, 3:], past_key_values=past)
    past = [(cached, position) for cached, _ in past]
    logits, presents = run_cached(model, ids[:, 3:], past_key_values=past)
    assert (logits == expected).all()
    for _, positions in presents:
        assert positions.dtype == jnp.int32
        assert positions.tolist() == [6, 6]


def test_a_full_cache_grows_and_the_caller_s_stays_usable() -> None:
    model, ids = build(CONFIG), random_ids(CONFIG, 1, 66)
    _, past = run_cached(model, ids[:, :64])
    assert past[0][0]["key"].shape[2] == 64
    one, presents = run_eagerly(model, ids[:, 64:], past_key_values=past)
    assert [cached["key"].shape[2] for cached, _ in presents] == [100, 100]
    two, _ = run_eagerly(model, ids[:, 64:], past_key_values=past)
    assert (one == two).all()


@pytest.mark.parametrize("shared", ["rows", "layers", "keys and values"])
def test_slots_that_share_memory_are_not_written_over_each_other(shared: str) -> None:
    model = build(tiny(num_hidden_layers=2))
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    past = init_cache(model.model.config, 2, dtype=jnp.float64)
    if shared == "rows":
        past = [
            ({n: jnp.broadcast_to(array[:1], array.shape) for n, array in cached.items()}, position)
            for cached, position in past
        ]
    elif shared == "layers":
        past = past[:1] * 2
    else:
        past = [(dict.fromkeys(("key", "value"), cached["key"]), at) for cached, at in past]
    first, past = run_eagerly(model, ids[:, :2], past_key_values=past)
    second, _ = run_eagerly(model, ids[:, 2:], past_key_values=past)
    found = np.concatenate([first, second], axis=1)
    assert np.allclose(found, run(model, ids), rtol=1e-10, atol=1e-12)
