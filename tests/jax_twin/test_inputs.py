from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diy_jax
from tests.bad_inputs import CASES, CONFIG, IDS, Case, Past
from tests.jax_twin.build import Built, run, run_cached, run_eagerly

pytestmark = pytest.mark.usefixtures("strict")

MODEL = Built(diy_jax.DIYForCausalLM(CONFIG), diy_jax.init_params(CONFIG))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_with_words_that_help(case: Case) -> None:
    with pytest.raises(ValueError, match=case.message):
        case.call(MODEL, jnp.asarray)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_array_is_refused_like_a_list(case: Case) -> None:
    with jax.enable_x64(True):  # so that values keep the dtype of numpy
        kwargs = {
            name: jnp.asarray(value) if isinstance(value, np.ndarray) else value
            for name, value in case.kwargs.items()
        }
        with pytest.raises(ValueError, match=case.message):
            Case(case.name, kwargs, case.message, case.past).call(MODEL, jnp.asarray)


@pytest.mark.parametrize(
    "ids",
    [
        IDS.tolist(),
        tuple(tuple(row) for row in IDS.tolist()),
        *(IDS.astype(kind) for kind in ("int8", "uint8", "uint16", "int64", "uint64")),
        IDS[::-1][::-1],
        jnp.asarray(IDS),
        jnp.asarray(IDS, jnp.uint8),
    ],
    ids=lambda ids: f"{type(ids).__name__} {getattr(ids, 'dtype', '')}",
)
def test_ids_may_be_any_integers(ids: Any) -> None:
    assert (np.array(MODEL(ids)) == np.array(MODEL(jnp.asarray(IDS)))).all()


@pytest.mark.parametrize("kind", [bool, np.int32, np.uint8, np.float32, list, jnp.asarray])
def test_a_mask_may_be_of_any_kind(kind: Any) -> None:
    mask = np.array([[1, 1, 1], [1, 0, 0]])
    given = kind(mask.tolist()) if kind in (list, jnp.asarray) else mask.astype(kind)
    kept = np.array(MODEL(IDS, given, logits_to_keep=1))
    assert (kept == np.array(MODEL(IDS, seq_lengths=[3, 1], logits_to_keep=1))).all()
    assert not (kept == np.array(MODEL(IDS, logits_to_keep=1))).all()


@pytest.mark.parametrize("kind", [np.int64, np.uint8, list, jnp.asarray])
def test_lengths_may_be_any_integers(kind: Any) -> None:
    given = kind([3, 1]) if kind in (list, jnp.asarray) else np.array([3, 1], kind)
    kept = np.array(MODEL(IDS, seq_lengths=given, logits_to_keep=1))
    assert (kept == np.array(MODEL(IDS, [[1, 1, 1], [1, 0, 0]], logits_to_keep=1))).all()


def test_a_mask_and_lengths_that_agree_are_one() -> None:
    both = np.array(MODEL(IDS, [[1, 1, 1], [1, 0, 0]], [3, 1], logits_to_keep=1))
    assert (both == np.array(MODEL(IDS, seq_lengths=[3, 1], logits_to_keep=1))).all()


def test_with_a_cache_a_row_may_be_empty_and_a_sequence_may_end_at_the_limit() -> None:
    past = Past(capacity=70, position=np.array([67, 70], np.int32)).make(jnp.asarray)
    logits, presents = run_eagerly(MODEL, IDS, [[1, 1, 1], [0, 0, 0]], past_key_values=past)
    assert np.isfinite(logits).all()
    assert presents[0][1].tolist() == [70, 70]
    assert jax.eval_shape(MODEL, np.ones((1, 70), np.int32)).shape == (1, 70, 23)


def test_a_refused_call_leaves_the_cache_as_it_was() -> None:
    past = Past(position=3).make(jnp.asarray)
    before = [np.array(cached["key"]) for cached, _ in past]
    with pytest.raises(ValueError, match="input_ids must lie in"):
        run_eagerly(MODEL, [[1], [23]], past_key_values=past)
    with pytest.raises(ValueError, match="beyond max_position_embeddings"):
        run_eagerly(MODEL, np.ones((2, 68), int), past_key_values=past)
    assert all((c["key"] == old).all() for (c, _), old in zip(past, before, strict=True))


def test_under_jit_values_are_not_looked_at_and_mask_and_lengths_must_agree() -> None:
    mask, lengths = jnp.asarray([[1, 1, 0], [1, 0, 0]]), jnp.asarray([2, 3])
    result = run(MODEL, IDS, mask, lengths, logits_to_keep=1)
    right = run(MODEL, IDS, mask, jnp.asarray([2, 1]), logits_to_keep=1)
    assert (result[0] == right[0]).all()
    assert np.isnan(result[1]).all()
    assert (right != run(MODEL, IDS, mask + 1 - mask, lengths, logits_to_keep=1)).any()
    for case in ("a hole in the mask", "an id beyond the vocabulary"):
        (kwargs,) = [case_.kwargs for case_ in CASES if case_.name == case]
        jax.eval_shape(MODEL, **({"input_ids": IDS} | kwargs))  # and no exception


def test_under_jit_shapes_are_still_looked_at() -> None:
    with pytest.raises(ValueError, match="attention_mask must have the shape of input_ids"):
        run(MODEL, IDS, np.ones((2, 4), np.int32))
    with pytest.raises(ValueError, match="past_key_values has 3 layers, the model has 2"):
        run_cached(MODEL, IDS, past_key_values=Past(layers=3).make(jnp.asarray))


def test_under_vmap_values_are_not_looked_at() -> None:
    result = jax.jit(jax.vmap(MODEL))(IDS[:, None], np.array([[[1, 1, 0]], [[1, 0, 0]]]))
    expected = np.array(MODEL(IDS, [[1, 1, 0], [1, 0, 0]]))
    assert np.allclose(result[:, 0], expected, rtol=1e-5, atol=1e-7)


def test_under_grad_the_checks_do_not_trip() -> None:
    def loss(params: Any, ids: Any) -> Any:
        return jnp.square(MODEL.model.apply({"params": params}, ids)).sum()

    gradients = jax.eval_shape(jax.grad(loss), MODEL.params, IDS)
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, MODEL.params)
    with pytest.raises(ValueError, match="input_ids must lie in"):
        jax.grad(loss)(MODEL.params, IDS + 20)
