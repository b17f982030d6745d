"""What eager code refuses is NaN under `jit`, and only in the row that is wrong."""

from __future__ import annotations

from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diy_jax
from diy_jax.loss import cross_entropy
from diy_jax.unseen import wrong_rows
from tests.jax_twin.build import build
from tests.oracles import tiny

CONFIG = tiny(max_position_embeddings=70)
SERVED = tiny(vocab_size=512, hidden_size=128, intermediate_size=256)
MODEL = build(CONFIG, jnp.float32)
IDS = np.array([[1, 2, 3], [4, 5, 6]], np.int32)


def _compiled(**kwargs: Any) -> Any:
    """The model's answer under jit, where no value can be seen."""
    return jax.jit(lambda kwargs: MODEL(**kwargs))({"input_ids": jnp.asarray(IDS)} | kwargs)


def _only_row_1_is_nan(logits: Any, expected: Any) -> bool:
    sound = np.allclose(logits[0], expected[0], rtol=1e-5, atol=1e-6)
    return sound and bool(np.isnan(logits[1]).all())


@pytest.mark.parametrize(
    "kwargs",
    [
        {"input_ids": np.array([[1, 2, 3], [4, 5, 23]])},
        {"input_ids": np.array([[1, 2, 3], [4, -1, 6]])},
        {"attention_mask": np.array([[1, 1, 1], [1, 0, 1]])},
        {"attention_mask": np.array([[1, 1, 1], [0, 1, 1]])},
        {"attention_mask": np.array([[1, 1, 1], [2, 1, 0]])},
        {"attention_mask": np.array([[1.0, 1.0, 1.0], [0.5, 0, 0]])},
        {"attention_mask": np.array([[True, True, True], [False, False, False]])},
        {"attention_mask": np.array([[1, 1, 1], [1, 1, 0]]), "seq_lengths": np.array([3, 3])},
        {"seq_lengths": np.array([3, 4])},
        {"seq_lengths": np.array([3, 0])},
        {"seq_lengths": np.array([3, -2])},
    ],
    ids=lambda kwargs: f"{next(iter(kwargs))}={next(iter(kwargs.values()))[1]}",
)
def test_a_row_that_would_be_refused_is_nan(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="row 1"):
        MODEL(**({"input_ids": IDS} | kwargs))
    assert _only_row_1_is_nan(_compiled(**kwargs), MODEL(IDS))


def test_the_gradients_of_a_row_that_would_be_refused_are_nan() -> None:
    def loss(params: Any, lengths: Any) -> Any:
        return MODEL.model.apply({"params": params}, IDS, seq_lengths=lengths).sum()

    gradients = jax.jit(jax.grad(loss))
    for lengths, sound in ((np.array([3, 3]), True), (np.array([3, 4]), False)):
        found = jax.tree.leaves(gradients(MODEL.params, lengths))
        assert [bool(np.isfinite(array).all()) for array in found] == [sound] * len(found)


def test_a_row_without_room_in_its_cache_is_nan_from_then_on() -> None:
    cache = diy_jax.init_cache(CONFIG, 2, 4)  # 64 slots
    step = jax.jit(lambda ids, lengths, past: MODEL(ids, None, lengths, past, True))
    ids = np.resize(np.arange(1, 23), (2, 66)).astype(np.int32)
    _, cache = step(ids[:, :64], np.array([60, 64]), cache)
    logits, cache = step(ids[:, 60:62], np.array([2, 0]), cache)  # full, and nothing new
    assert np.isfinite(logits).all()
    logits, cache = step(ids[:, 62:63], np.array([1, 1]), cache)
    whole = MODEL(ids[:, :63])
    assert _only_row_1_is_nan(logits[:, 0], np.repeat(whole[:1, 62], 2, axis=0))
    logits, cache = step(ids[:, 63:64], np.array([1, 0]), cache)
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1]).all()
    with pytest.raises(ValueError, match=r"row 1 is negative .*; a compiled call marks"):
        MODEL(ids[:, :1], past_key_values=cache)


@pytest.mark.parametrize("positions", [(3, 5), (-1, -1), (65, 65), (2**31 - 1, 2**31 - 1)])
def test_a_cache_at_an_impossible_place_is_nan(positions: tuple[int, int]) -> None:
    cache = [
        (cached, jnp.array([3, position], jnp.int32))
        for (cached, _), position in zip(diy_jax.init_cache(CONFIG, 2), positions, strict=True)
    ]
    with pytest.raises(ValueError, match="row 1"):
        MODEL(IDS[:, :1], past_key_values=cache)
    logits = _compiled(input_ids=IDS[:, :1], past_key_values=cache)
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1]).all()


@pytest.mark.parametrize(("has_cache", "wrong"), [(False, [2, 3, 5, 6]), (True, [2, 3, 6])])
def test_ids_and_lengths_are_wrong_from_the_first_beyond_their_range(
    has_cache: bool, wrong: list[int]
) -> None:
    ids = jnp.array([[0, 22], [22, 0], [-1, 0], [0, 23], [0, 0], [0, 0], [0, 0]])
    lengths = jnp.array([1, 2, 2, 2, 2, 0, 3])
    found = jax.jit(lambda ids, lengths: wrong_rows(ids, lengths, None, has_cache, CONFIG))(
        ids, lengths
    )
    assert np.flatnonzero(found).tolist() == wrong


@pytest.mark.parametrize("label", [-1, 23, 2**31 - 1, -101])
def test_a_label_outside_of_the_vocabulary_is_a_loss_of_nan(label: int) -> None:
    head = jnp.ones((4, 23))
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(1, 3, 4)), jnp.float32)

    def loss(labels: Any, hidden: Any = hidden) -> Any:
        return cross_entropy(hidden, labels, lambda x: x @ head)

    assert np.isfinite(jax.jit(loss)(jnp.array([[1, 22, -100]]))[0])
    assert np.isnan(jax.jit(loss)(jnp.array([[1, label, -100]]))[0])
    gradient = jax.jit(jax.grad(lambda hidden, labels: loss(labels, hidden)[0]))
    assert np.isnan(gradient(hidden, jnp.array([[1, label, -100]]))[0, 1]).all()
    with pytest.raises(ValueError, match="labels must lie in"):
        loss(jnp.array([[1, label, -100]]))


@pytest.mark.parametrize("columns", [1, 64], ids=["a step", "a prompt"])
def test_the_check_costs_nothing_beside_the_model(columns: int) -> None:
    """By what XLA says that the compiled program computes and moves, with the check and without."""
    model, params = diy_jax.DIYForCausalLM(SERVED), diy_jax.init_params(SERVED)
    past = diy_jax.init_cache(SERVED, 8, 256)
    ids, lengths = np.ones((8, columns), np.int32), np.full(8, columns, np.int32)

    def cost() -> tuple[float, float]:
        def logits(params: Any, ids: Any, lengths: Any, past: Any) -> Any:
            return model.apply({"params": params}, ids, None, lengths, past, True)

        found = jax.jit(logits).lower(params, ids, lengths, past).compile().cost_analysis()
        return found["flops"], found["bytes accessed"]

    checked = cost()
    with mock.patch("diy_jax.model.wrong_rows", return_value=None):
        unchecked = cost()
    for more, fewer in zip(checked, unchecked, strict=True):
        assert fewer < more < 1.001 * fewer
