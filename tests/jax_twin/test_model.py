from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import example, given, settings
from hypothesis import strategies as st

import diy_jax
from diy_core.config import DIYConfig, RopeScaling
from diy_core.mapping import flatten
from diy_jax.random import key
from parity.check.measures import relative_l2
from tests.jax_twin.build import Built, build, run, run_cached
from tests.oracles import (
    CONFIGS,
    FIELD_CHANGES,
    LLAMA3,
    SCALING_CHANGES,
    Array,
    NumpyModel,
    random_ids,
    random_weights,
    rms_norm,
    tiny,
)

pytestmark = pytest.mark.usefixtures("strict", "x64")

CONFIG = tiny()
IDS = random_ids(CONFIG, 2, 6)


def eagerly(model: Built) -> Array:
    """Logits without compiling the model: cheaper where shapes stay and the config changes."""
    return np.array(model(IDS))


def outputs(model: Built) -> dict[str, list[Any]]:
    """By module path, each module's first input and its output, without the cache."""
    seen: dict[str, list[Any]] = {}

    def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            first = output[0] if isinstance(output, tuple) else output
            seen["/".join(context.module.path)] = [args[0], first]
        return output

    with nn.intercept_methods(record):
        model(IDS)
    return seen


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_model_in_plain_numpy(name: str) -> None:
    config = CONFIGS[name]
    oracle = NumpyModel(config, random_weights(config))
    expected = np.stack([oracle.logits(row) for row in IDS])
    assert relative_l2(run(build(config), IDS), expected) <= 1e-12


@pytest.mark.parametrize(
    "name",
    [f"layers_{i}/{norm}_norm" for i in range(2) for norm in ("attention", "feedforward")]
    + ["norm"],
)
def test_the_config_s_eps_matters_at_the_output_of_each_norm(name: str) -> None:
    config = tiny(rms_norm_eps=1e-2)
    model = build(config)
    x, y = (np.array(array) for array in outputs(model)[f"model/{name}"])
    weight = np.array(flatten(model.params)[("model", *name.split("/"), "scale")])
    assert relative_l2(y, rms_norm(x, weight, 1e-2)) <= 1e-12
    assert relative_l2(y, rms_norm(x, weight, 1e-5)) > 1e-4


def test_the_block_adds_what_its_two_halves_say() -> None:
    seen = outputs(build(CONFIG))
    x, y = seen["model/layers_1"]
    attended, fed = (seen[f"model/layers_1/{name}"][1] for name in ("attention", "feedforward"))
    assert (y == x + attended + fed).all()


def test_the_trunk_and_project_make_the_logits() -> None:
    model = build(CONFIG)
    variables = {"params": model.params}
    trunk = {"params": model.params["model"]}
    hidden = diy_jax.DIYModel(CONFIG, jnp.float64, jnp.float64).apply(trunk, IDS, [6, 4])
    logits = model.model.apply(variables, hidden, method="project")
    assert hidden.shape == (2, 6, CONFIG.hidden_size)
    assert relative_l2(np.array(logits), run(model, IDS, None, np.array([6, 4]))) <= 1e-14


MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
LENGTHS = np.array([6, 3])


def test_a_mask_and_lengths_say_the_same() -> None:
    model = build(CONFIG)
    assert (run(model, IDS, MASK) == run(model, IDS, None, LENGTHS)).all()
    _, one = run_cached(model, IDS, MASK)
    _, two = run_cached(model, IDS, None, LENGTHS)
    assert one[0][1].tolist() == two[0][1].tolist() == [6, 3]
    assert all((a["key"] == b["key"]).all() for (a, _), (b, _) in zip(one, two, strict=True))


@pytest.mark.parametrize("cached", [False, True])
def test_padding_is_finite_and_influences_nothing(cached: bool) -> None:
    model, other = build(CONFIG), IDS.copy()
    other[1, 3:] = (other[1, 3:] + 1) % CONFIG.vocab_size
    if not cached:
        one, two = run(model, IDS, MASK), run(model, other, MASK)
    else:
        (one, past), (two, again) = run_cached(model, IDS, MASK), run_cached(model, other, MASK)
        for (a, _), (b, _) in zip(past, again, strict=True):
            assert (a["key"] == b["key"]).all()
            assert (a["value"] == b["value"]).all()
            assert not a["key"][1, :, 3:].any()
    assert np.isfinite(one).all()
    assert (one[0] == two[0]).all()
    assert (one[1, :3] == two[1, :3]).all()
    assert (one[1, 3:] != two[1, 3:]).any()  # the ids did change


def test_logits_to_keep_takes_the_last_valid_tokens() -> None:
    model = build(CONFIG)
    everything = run(model, IDS, None, np.array([6, 2]))
    columns = np.array([[3, 4, 5], [0, 0, 1]])
    expected = np.take_along_axis(everything, columns[:, :, None], axis=1)
    kept = run(model, IDS, None, np.array([6, 2]), logits_to_keep=3)
    assert relative_l2(kept, expected) <= 1e-14
    cached, _ = run_cached(model, IDS, None, np.array([6, 2]), logits_to_keep=3)
    assert relative_l2(cached, expected) <= 1e-12
    assert jax.eval_shape(lambda: model(IDS, logits_to_keep=6)).shape == everything.shape


def test_packed_documents_are_what_they_are_alone() -> None:
    model = build(CONFIG)
    packed = run(model, IDS, segment_ids=np.array([[0, 0, 0, 0, 1, 1], [5, 3, 3, 9, 9, 9]]))
    for row, start, stop in ((0, 0, 4), (0, 4, 6), (1, 0, 1), (1, 1, 3), (1, 3, 6)):
        alone = np.zeros((2, 6), np.int32)  # padded to the shape that is compiled already
        alone[0, : stop - start] = IDS[row, start:stop]
        expected = run(model, alone)[0, : stop - start]
        assert relative_l2(packed[row, start:stop], expected) <= 1e-12
    assert relative_l2(packed, run(model, IDS)) > 1e-3


def test_packed_documents_count_their_positions_from_0() -> None:
    # Rotations are relative: a wrong start shows in nothing but the rounding of bfloat16.
    model = build(CONFIG, jnp.bfloat16)
    documents = random_ids(CONFIG, 2, 45)
    one_row = documents.reshape(1, 90)
    packed = run(model, one_row, segment_ids=np.repeat([[0, 1]], 45, axis=1))[0]
    alone = run(model, documents).reshape(packed.shape)
    assert (packed != alone).mean() < 0.02
    as_one = run(model, one_row, segment_ids=np.zeros((1, 90), int))[0]
    assert (as_one[45:] != alone[45:]).mean() > 0.1


def test_token_by_token_is_the_whole() -> None:
    model, whole = build(CONFIG), run(build(CONFIG), IDS)
    steps, past = [], diy_jax.init_cache(CONFIG, 2, dtype=jnp.float64)
    for column in range(6):
        logits, past = run_cached(model, IDS[:, column : column + 1], past_key_values=past)
        steps.append(logits)
    assert relative_l2(np.concatenate(steps, axis=1), whole) <= 1e-12


# Where each of three rows stands after each of three chunks; 64 is the first capacity.
ENDS = st.lists(st.sampled_from([0, 1, 2, 31, 63, 64, 65, 72, 90]), min_size=3, max_size=3)
ROWS = st.lists(ENDS.map(sorted), min_size=3, max_size=3)
LONG_IDS = random_ids(CONFIG, 3, 90, seed=1)


@functools.cache
def long_logits() -> Array:
    return run(build(CONFIG), LONG_IDS)


@settings(deadline=None, max_examples=15, derandomize=True)
@given(rows=ROWS)
@example(rows=[[64, 64, 65], [0, 64, 66], [1, 1, 2]])  # ends at the capacity, then crosses it
@example(rows=[[2, 31, 90], [2, 2, 2], [0, 0, 5]])  # long second chunks, rows that are done
def test_a_prompt_in_chunks_is_the_prompt_whole(rows: list[list[int]]) -> None:
    model, whole = build(CONFIG), long_logits()
    past, starts = diy_jax.init_cache(CONFIG, 3, dtype=jnp.float64), np.zeros(3, np.int32)
    for ends in np.array(rows, np.int32).T:
        lengths = ends - starts
        width = 8 if lengths.max() <= 8 else 90  # few shapes, few compilations
        columns = np.minimum(starts[:, None] + np.arange(width)[None, :], 89)
        ids = np.take_along_axis(LONG_IDS, columns, axis=1)
        past = diy_jax.grow_cache(past, int(ends.max(initial=1)), CONFIG.max_position_embeddings)
        logits, past = run_cached(model, ids, seq_lengths=lengths, past_key_values=past)
        assert np.isfinite(logits).all()
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            if length:
                expected = whole[row, start : start + length]
                assert relative_l2(logits[row, :length], expected) <= 1e-12
        starts = ends
        for _, position in past:
            assert position.tolist() == ends.tolist()


def test_tying_removes_vocab_times_hidden_parameters() -> None:
    tied, untied = (diy_jax.init_params(tiny(tie_word_embeddings=tie)) for tie in (True, False))
    counts = [sum(leaf.size for leaf in jax.tree.leaves(params)) for params in (tied, untied)]
    assert counts[1] - counts[0] == CONFIG.vocab_size * CONFIG.hidden_size
    assert set(tied) == {"model"}
    assert set(untied) == {"model", "lm_head"}
    assert set(untied["lm_head"]) == {"kernel"}


def test_gradients_reach_the_embedding_from_both_uses() -> None:
    model, ids = build(CONFIG), np.array([[1, 2, 3]])
    table = model.params["model"]["embed_tokens"]["embedding"]
    pull = np.random.default_rng(0).normal(size=(1, 3, CONFIG.vocab_size))

    @jax.jit
    def loss(table: Any) -> Any:
        trunk = model.params["model"] | {"embed_tokens": {"embedding": table}}
        return (model.model.apply({"params": {"model": trunk}}, ids) * pull).sum()

    gradient = np.array(jax.jit(jax.grad(loss))(table))
    for token in (2, 7):  # one that is looked up, one that is only projected to
        numeric = []
        for channel in range(CONFIG.hidden_size):
            up, down = (loss(table.at[token, channel].add(step)) for step in (1e-6, -1e-6))
            numeric.append(float(up - down) / 2e-6)
        assert relative_l2(gradient[token], np.array(numeric)) <= 1e-7
    trunk = diy_jax.DIYModel(CONFIG, jnp.float64, jnp.float64)
    hidden = jax.jit(trunk.apply)({"params": model.params["model"]}, ids)
    projected_to = pull[0].T @ np.array(hidden[0])
    assert relative_l2(gradient[7], projected_to[7]) <= 1e-10
    assert relative_l2(gradient[2], projected_to[2]) > 0.1


def shapes(config: DIYConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    params = diy_jax.init_params(config)
    return {path: leaf.shape for path, leaf in flatten(params).items()}


def first_logits(config: DIYConfig) -> Array:
    model = diy_jax.DIYForCausalLM(config, jnp.float64, jnp.float64)
    return eagerly(Built(model, diy_jax.init_params(config, dtype=jnp.float64)))


def test_every_field_of_the_config_has_a_change_here() -> None:
    assert {field.name for field in dataclasses.fields(DIYConfig)} == set(FIELD_CHANGES)
    assert {field.name for field in dataclasses.fields(RopeScaling)} == set(SCALING_CHANGES)


@pytest.mark.parametrize("field", FIELD_CHANGES)
def test_every_field_of_the_config_changes_something(field: str, tmp_path: Any) -> None:
    value, effect = FIELD_CHANGES[field]
    changed = tiny(**{field: value})
    model, params = diy_jax.DIYForCausalLM(changed), diy_jax.init_params(changed)
    if effect == "limit":
        with pytest.raises(ValueError, match=r"beyond max_position_embeddings \(5\)"):
            run(Built(model, params), IDS)
        assert run(build(CONFIG), IDS).shape == (2, 6, 23)
    elif effect == "file":
        model.save_pretrained(tmp_path / "model", params)
        read, _ = diy_jax.DIYForCausalLM.from_pretrained(tmp_path / "model")
        assert read.config.extra["bos_token_id"] == 1
    else:
        assert (shapes(CONFIG) != shapes(changed)) == (effect == "shapes")
        logits = jax.eval_shape(lambda: model.apply({"params": params}, IDS))
        assert logits.shape == (2, 6, changed.vocab_size)
        if effect == "logits":
            assert relative_l2(eagerly(build(changed)), eagerly(build(CONFIG))) > 1e-5
        if effect == "dropout":
            one, other = build(changed), build(CONFIG)
            assert (run(one, IDS) == run(other, IDS)).all()
            assert relative_l2(run(one, IDS, dropout_key=key(0)), run(one, IDS)) > 0.1
        if effect == "first weights":
            assert relative_l2(first_logits(changed), first_logits(CONFIG)) > 1e-3


@pytest.mark.parametrize("field", SCALING_CHANGES)
def test_every_field_of_the_rope_scaling_changes_something(field: str) -> None:
    one, other = (
        eagerly(build(tiny(rope_scaling=scaling, rope_theta=50.0)))
        for scaling in (LLAMA3, SCALING_CHANGES[field])
    )
    assert relative_l2(other, one) > 1e-5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
@pytest.mark.parametrize("param_dtype", [jnp.float32, None])
def test_everything_is_computed_in_the_model_s_dtype(dtype: Any, param_dtype: Any) -> None:
    params = diy_jax.init_params(CONFIG, dtype=param_dtype or dtype)
    model = Built(diy_jax.DIYForCausalLM(CONFIG, dtype, param_dtype or dtype), params)
    seen: dict[str, list[Any]] = {}
    past = diy_jax.init_cache(CONFIG, 2, dtype=dtype)

    def trace() -> Any:
        seen.update(outputs(model))
        return model(IDS, past_key_values=past, use_cache=True)

    logits, presents = jax.eval_shape(trace)
    leaves = [output for _, output in seen.values()] + [logits]
    leaves += [array for cached, _ in presents for array in cached.values()]
    assert len(leaves) > 20
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(dtype)}
