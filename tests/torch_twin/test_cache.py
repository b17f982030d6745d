from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from diy_torch import PastKeyValues, grow_cache, init_cache
from diy_torch.cache import update_cache
from tests.oracles import Array, random_ids, tiny
from tests.torch_twin.build import build, run, run_cached

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
        {name: torch.tensor(array) for name, array in cached.items()},
        torch.tensor(position, dtype=torch.int32),
        torch.tensor(new["key"]),
        torch.tensor(new["value"]),
        torch.tensor(lengths, dtype=torch.int32),
    )
    return {name: array.numpy() for name, array in present.items()}, positions.tolist()


@pytest.mark.parametrize(("max_length", "capacity"), [(1, 64), (64, 64), (65, 100), (100, 100)])
def test_capacities_are_powers_of_two_up_to_the_limit(max_length: int, capacity: int) -> None:
    past = init_cache(CONFIG, 3, max_length, torch.bfloat16)
    assert len(past) == CONFIG.num_hidden_layers
    for cached, position in past:
        assert cached["key"].shape == cached["value"].shape == (3, 2, capacity, 4)
        assert cached["key"].dtype == cached["value"].dtype == torch.bfloat16
        assert not cached["key"].any()
        assert not cached["value"].any()
        assert position.dtype == torch.int32
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
    assert init_cache(CONFIG, 2, dtype="bfloat16")[0][0]["key"].dtype == torch.bfloat16


def test_each_layer_has_memory_of_its_own() -> None:
    past = init_cache(CONFIG, 2)
    arrays = [a for cached, position in past for a in (*cached.values(), position)]
    assert len({array.data_ptr() for array in arrays}) == 3 * CONFIG.num_hidden_layers


def test_growing_keeps_what_is_cached() -> None:
    old = {name: torch.tensor(array) for name, array in filled().items()}
    position = torch.tensor([1, 2, 64, 0], dtype=torch.int32)
    past: PastKeyValues = [(old, position), (old, position)]
    assert grow_cache(past, 64, 256) is past
    for cached, positions in grow_cache(past, 65, 256):
        assert positions.tolist() == position.tolist()
        for name in ("key", "value"):
            assert cached[name].shape == (4, 2, 128, 4)
            assert torch.equal(cached[name][:, :, :64], old[name])
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

    leaves = {
        side: {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
        for side, arrays in (("before", before), ("new", new))
    }
    after, _ = update_cache(
        leaves["before"],
        torch.tensor(POSITION, dtype=torch.int32),
        *leaves["new"].values(),
        torch.tensor(LENGTHS, dtype=torch.int32),
    )
    sum((after[name] * torch.tensor(weights[name])).sum() for name in after).backward()
    for name in ("key", "value"):
        np.testing.assert_array_equal(leaves["new"][name].grad.numpy(), expected[name])
        np.testing.assert_array_equal(leaves["before"][name].grad.numpy(), weights[name] * kept)


def test_key_and_value_are_not_confused() -> None:
    after, _ = update(filled(), [0] * 4, new := filled(capacity=CAPACITY), [CAPACITY] * 4)
    assert (after["key"] == new["key"]).all()
    assert (after["value"] == new["value"]).all()


def test_slots_are_written_in_place_unless_gradients_are_recorded() -> None:
    cached = {name: torch.tensor(array) for name, array in filled().items()}
    new = torch.ones(4, 2, 1, 4, dtype=torch.float64)
    position, lengths = torch.zeros(4, dtype=torch.int32), torch.ones(4, dtype=torch.int32)
    present, _ = update_cache(cached, position, new, new, lengths)
    assert present["key"] is cached["key"]
    recorded, _ = update_cache(cached, position, new.clone().requires_grad_(), new, lengths)
    assert recorded["key"] is not cached["key"]
    (gradient,) = torch.autograd.grad(recorded["key"].sum(), [leaf := recorded["key"]])
    assert gradient.shape == leaf.shape


@pytest.mark.parametrize("position", [2, np.int32(2)])
def test_a_position_may_be_an_int_for_every_row(position: int) -> None:
    model, ids = build(CONFIG), random_ids(CONFIG, 2, 5)
    _, past = run_cached(model, ids[:, :2])
    expected, _ = run_cached(model, ids[:, 2:], past_key_values=past)
    past = [(cached, position) for cached, _ in past]
    logits, presents = run_cached(model, ids[:, 2:], past_key_values=past)
    assert (logits == expected).all()
    for _, positions in presents:
        assert positions.dtype == torch.int32
        assert positions.tolist() == [5, 5]


def test_a_full_cache_grows_and_the_caller_s_stays_usable() -> None:
    model, ids = build(CONFIG), random_ids(CONFIG, 1, 66)
    _, past = run_cached(model, ids[:, :64])
    assert past[0][0]["key"].shape[2] == 64
    one, presents = run_cached(model, ids[:, 64:], past_key_values=past)
    assert [cached["key"].shape[2] for cached, _ in presents] == [100, 100]
    two, _ = run_cached(model, ids[:, 64:], past_key_values=past)
    assert (one == two).all()


@pytest.mark.parametrize("shared", ["rows", "layers", "keys and values"])
def test_slots_that_share_memory_are_not_written_over_each_other(shared: str) -> None:
    model = build(tiny(num_hidden_layers=2))
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    past = init_cache(model.config, 2, dtype=torch.float64)
    if shared == "rows":
        past = [
            ({name: array[:1].expand(2, -1, -1, -1) for name, array in cached.items()}, position)
            for cached, position in past
        ]
    elif shared == "layers":
        past = past[:1] * 2
    else:
        past = [(dict.fromkeys(("key", "value"), cached["key"]), at) for cached, at in past]
    first, past = run_cached(model, ids[:, :2], past_key_values=past)
    second, _ = run_cached(model, ids[:, 2:], past_key_values=past)
    found = np.concatenate([first, second], axis=1)
    assert np.allclose(found, run(model, ids), rtol=1e-10, atol=1e-12)
