from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import diy_torch
from diy_core.config import DIYConfig, RopeScaling
from diy_torch.random import key
from parity.check.measures import relative_l2
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
from tests.torch_twin.build import build, run, run_cached

CONFIG = tiny()
IDS = random_ids(CONFIG, 2, 6)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_model_in_plain_numpy(name: str) -> None:
    config = CONFIGS[name]
    oracle = NumpyModel(config, random_weights(config))
    expected = np.stack([oracle.logits(row) for row in IDS])
    assert relative_l2(run(build(config), IDS), expected) <= 1e-12


@pytest.mark.parametrize(
    "name",
    [f"layers.{i}.{norm}_norm" for i in range(2) for norm in ("attention", "feedforward")]
    + ["norm"],
)
def test_the_config_s_eps_matters_at_the_output_of_each_norm(name: str) -> None:
    config = tiny(rms_norm_eps=1e-2)
    model, seen = build(config), {}
    norm = model.model.get_submodule(name)
    norm.register_forward_hook(lambda _, x, y: seen.update(x=x[0].numpy(), y=y.numpy()))
    run(model, IDS)
    weight = norm.weight.detach().numpy()
    assert relative_l2(seen["y"], rms_norm(seen["x"], weight, 1e-2)) <= 1e-12
    assert relative_l2(seen["y"], rms_norm(seen["x"], weight, 1e-5)) > 1e-4


def test_the_block_adds_what_its_two_halves_say() -> None:
    model, seen = build(CONFIG), {}
    block = model.model.layers[1]
    for name in ("attention", "feedforward"):
        block.get_submodule(name).register_forward_hook(
            lambda _, x, y, name=name: seen.update({name: y[0] if isinstance(y, tuple) else y})
        )
    block.register_forward_hook(lambda _, x, y: seen.update(x=x[0], y=y[0]))
    run(model, IDS)
    assert torch.equal(seen["y"], seen["x"] + seen["attention"] + seen["feedforward"])


def test_the_trunk_and_project_make_the_logits() -> None:
    model = build(CONFIG)
    with torch.no_grad():
        hidden = model.model(IDS, [6, 4])
        logits = model.project(hidden)
    assert hidden.shape == (2, 6, CONFIG.hidden_size)
    assert (logits.numpy() == run(model, IDS, seq_lengths=[6, 4])).all()


MASK, LENGTHS = [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], [6, 3]


def test_a_mask_and_lengths_say_the_same() -> None:
    model = build(CONFIG)
    for more in ({}, {"logits_to_keep": 2}):
        by_mask, by_lengths = run(model, IDS, MASK, **more), run(model, IDS, None, LENGTHS, **more)
        assert (by_mask == by_lengths).all()
    _, one = run_cached(model, IDS, MASK)
    _, two = run_cached(model, IDS, None, LENGTHS)
    assert one[0][1].tolist() == two[0][1].tolist() == LENGTHS
    assert all(torch.equal(a["key"], b["key"]) for (a, _), (b, _) in zip(one, two, strict=True))


@pytest.mark.parametrize("cached", [False, True])
def test_padding_is_finite_and_influences_nothing(cached: bool) -> None:
    model, other = build(CONFIG), IDS.copy()
    other[1, 3:] = (other[1, 3:] + 1) % CONFIG.vocab_size
    if not cached:
        one, two = run(model, IDS, MASK), run(model, other, MASK)
    else:
        (one, past), (two, again) = run_cached(model, IDS, MASK), run_cached(model, other, MASK)
        for (a, _), (b, _) in zip(past, again, strict=True):
            assert torch.equal(a["key"], b["key"])
            assert torch.equal(a["value"], b["value"])
            assert not a["key"][1, :, 3:].any()
    assert np.isfinite(one).all()
    assert (one[0] == two[0]).all()
    assert (one[1, :3] == two[1, :3]).all()
    assert (one[1, 3:] != two[1, 3:]).any()  # the ids did change


def test_logits_to_keep_takes_the_last_valid_tokens() -> None:
    model = build(CONFIG)
    everything = run(model, IDS, None, [6, 2])
    for keep, columns in ((1, [[5], [1]]), (3, [[3, 4, 5], [0, 0, 1]])):
        expected = np.take_along_axis(everything, np.array(columns)[:, :, None], axis=1)
        assert relative_l2(run(model, IDS, None, [6, 2], logits_to_keep=keep), expected) <= 1e-14
        cached, _ = run_cached(model, IDS, None, [6, 2], logits_to_keep=keep)
        assert relative_l2(cached, expected) <= 1e-12
    assert run(model, IDS, logits_to_keep=6).shape == everything.shape


def test_packed_documents_are_what_they_are_alone() -> None:
    model = build(CONFIG)
    packed = run(model, IDS, segment_ids=[[0, 0, 0, 0, 1, 1], [5, 3, 3, 9, 9, 9]])
    for row, start, stop in ((0, 0, 4), (0, 4, 6), (1, 0, 1), (1, 1, 3), (1, 3, 6)):
        alone = run(model, IDS[row : row + 1, start:stop])
        assert relative_l2(packed[row, start:stop], alone[0]) <= 1e-12
    assert relative_l2(packed, run(model, IDS)) > 1e-3


def test_packed_documents_count_their_positions_from_0() -> None:
    # Rotations are relative: a wrong start shows in nothing but the rounding of bfloat16.
    model = build(CONFIG, torch.bfloat16)
    documents = random_ids(CONFIG, 2, 45)
    one_row = documents.reshape(1, 90)
    packed = run(model, one_row, segment_ids=np.repeat([[0, 1]], 45, axis=1))[0]
    alone = run(model, documents).reshape(packed.shape)
    assert (packed != alone).mean() < 0.02
    as_one = run(model, one_row, segment_ids=np.zeros((1, 90), int))[0]
    assert (as_one[45:] != alone[45:]).mean() > 0.1


def test_token_by_token_is_the_whole() -> None:
    model, whole = build(CONFIG), run(build(CONFIG), IDS)
    steps, past = [], None
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
    past, starts = diy_torch.init_cache(CONFIG, 3, dtype=torch.float64), np.zeros(3, int)
    for ends in np.array(rows).T:
        lengths = ends - starts
        width = max(1, lengths.max())
        columns = np.minimum(starts[:, None] + np.arange(width)[None, :], 89)
        ids = np.take_along_axis(LONG_IDS, columns, axis=1)
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
    tied, untied = (
        diy_torch.DIYForCausalLM(tiny(tie_word_embeddings=tie)) for tie in (True, False)
    )
    counts = [sum(p.numel() for p in model.parameters()) for model in (tied, untied)]
    assert counts[1] - counts[0] == CONFIG.vocab_size * CONFIG.hidden_size
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    assert untied.lm_head.weight is not untied.model.embed_tokens.weight
    assert tied.lm_head.bias is untied.lm_head.bias is None
    assert tied.double().lm_head.weight is tied.model.embed_tokens.weight


def test_gradients_reach_the_embedding_from_both_uses() -> None:
    model, ids = build(CONFIG), np.array([[1, 2, 3]])
    table = model.model.embed_tokens.weight
    pull = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 3, CONFIG.vocab_size)))

    def loss() -> Any:
        return (model(ids) * pull).sum()

    loss().backward()
    for token in (2, 7):  # one that is looked up, one that is only projected to
        numeric = []
        for channel in range(CONFIG.hidden_size):
            values = []
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    table[token, channel] += step
                    values.append(float(loss()))
                    table[token, channel] -= step
            numeric.append((values[0] - values[1]) / 2e-6)
        assert relative_l2(table.grad[token].numpy(), np.array(numeric)) <= 1e-7
    with torch.no_grad():
        projected_to = (pull[0].T @ model.model(ids)[0]).numpy()
    assert relative_l2(table.grad[7].numpy(), projected_to[7]) <= 1e-10
    assert relative_l2(table.grad[2].numpy(), projected_to[2]) > 0.1


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def first_logits(config: DIYConfig) -> Array:
    return run(diy_torch.DIYForCausalLM(config, dtype=torch.float64), IDS)


def test_every_field_of_the_config_has_a_change_here() -> None:
    assert {field.name for field in dataclasses.fields(DIYConfig)} == set(FIELD_CHANGES)
    assert {field.name for field in dataclasses.fields(RopeScaling)} == set(SCALING_CHANGES)


@pytest.mark.parametrize("field", FIELD_CHANGES)
def test_every_field_of_the_config_changes_something(field: str, tmp_path: Any) -> None:
    value, effect = FIELD_CHANGES[field]
    changed = tiny(**{field: value})
    before, after = diy_torch.DIYForCausalLM(CONFIG), diy_torch.DIYForCausalLM(changed)
    if effect == "limit":
        with pytest.raises(ValueError, match=r"beyond max_position_embeddings \(5\)"):
            run(after, IDS)
        assert run(before, IDS).shape == (2, 6, 23)
    elif effect == "file":
        after.save_pretrained(tmp_path / "model")
        read = diy_torch.DIYForCausalLM.from_pretrained(tmp_path / "model").config
        assert read.extra["bos_token_id"] == 1
    else:
        assert (shapes(before) != shapes(after)) == (effect == "shapes")
        assert run(after, IDS).shape == (2, 6, changed.vocab_size)
        if effect == "logits":
            assert relative_l2(run(build(changed), IDS), run(build(CONFIG), IDS)) > 1e-5
        if effect == "dropout":
            one, other = build(changed), build(CONFIG)
            assert (run(one, IDS) == run(other, IDS)).all()
            assert relative_l2(run(one, IDS, dropout_key=key(0)), run(one, IDS)) > 0.1
        if effect == "first weights":
            assert relative_l2(first_logits(changed), first_logits(CONFIG)) > 1e-3


@pytest.mark.parametrize("field", SCALING_CHANGES)
def test_every_field_of_the_rope_scaling_changes_something(field: str) -> None:
    one, other = (
        run(build(tiny(rope_scaling=scaling, rope_theta=50.0)), IDS)
        for scaling in (LLAMA3, SCALING_CHANGES[field])
    )
    assert relative_l2(other, one) > 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_everything_is_computed_in_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    model, outputs = build(CONFIG, dtype), []
    for module in model.modules():
        module.register_forward_hook(lambda _, x, y: outputs.append(y))
    _, past = run_cached(model, IDS)
    leaves = [o[0] if isinstance(o, tuple) else o for o in outputs]
    leaves += [array for cached, _ in past for array in cached.values()]
    assert len(leaves) > 20
    assert {leaf.dtype for leaf in leaves} == {dtype}
