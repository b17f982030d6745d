from __future__ import annotations

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diy_jax
from tests.bad_inputs import CONFIG as SMALL
from tests.bad_inputs import GENERATE_CASES, IDS, Case
from tests.jax_twin.build import Built, build, run
from tests.oracles import Array, random_ids, tiny

pytestmark = pytest.mark.usefixtures("strict", "x64")

# The package has a function of this name.
compiled_step = importlib.import_module("diy_jax.generate")._step

# Untied, since a tied random model repeats itself; the argmax is decided in float64.
CONFIG = tiny(tie_word_embeddings=False, num_hidden_layers=1, max_position_embeddings=100)
PROMPTS, LENGTHS = random_ids(CONFIG, 3, 5), [5, 2, 4]
MASK = np.arange(5)[None, :] < np.array(LENGTHS)[:, None]
NEW = 8


def naive(prompt: Array, new_tokens: int) -> list[int]:
    """The whole sequence again for each token, no cache."""
    model, length = build(CONFIG), len(prompt)
    tokens = np.zeros((1, 100), np.int32)  # padded on the right, so that one shape is compiled
    tokens[0, :length] = prompt
    for end in range(length, length + new_tokens):
        tokens[0, end] = run(model, tokens)[0, end - 1].argmax()
    return tokens[0, : length + new_tokens].tolist()


def generate(model: Built, *args: Any, **kwargs: Any) -> diy_jax.GenerateOutput:
    return diy_jax.generate(model.model, model.params, *args, **kwargs)


def tokens_of(ids: Any, mask: Any = None, **more: Any) -> list[list[int]]:
    """Each row's tokens without its padding."""
    output = generate(build(CONFIG), ids, mask, **({"max_new_tokens": NEW} | more))
    rows = zip(output.sequences.tolist(), output.lengths.tolist(), strict=True)
    return [row[:length] for row, length in rows]


def test_it_is_the_argmax_loop() -> None:
    expected = naive(PROMPTS[0], NEW)
    assert tokens_of(PROMPTS[:1]) == [expected]
    assert len(set(expected[5:])) > 2  # no model that repeats itself


def test_a_ragged_batch_is_each_prompt_alone() -> None:
    expected = [naive(PROMPTS[row, :length], NEW) for row, length in enumerate(LENGTHS)]
    assert tokens_of(PROMPTS, MASK) == expected
    alone = [tokens_of(PROMPTS[row : row + 1, :n])[0] for row, n in enumerate(LENGTHS)]
    assert alone == expected


def test_prompts_may_be_lists_or_arrays_of_different_lengths() -> None:
    prompts = [PROMPTS[row, :length] for row, length in enumerate(LENGTHS)]
    expected = tokens_of(PROMPTS, MASK)
    assert tokens_of([prompt.tolist() for prompt in prompts]) == expected
    assert tokens_of([jnp.asarray(prompt) for prompt in prompts]) == expected


def test_left_padding_is_right_padding() -> None:
    left = np.stack([np.roll(row, 5 - n) for row, n in zip(PROMPTS, LENGTHS, strict=True)])
    assert tokens_of(left, MASK[:, ::-1]) == tokens_of(PROMPTS, MASK)


def test_what_stands_in_the_padding_does_not_matter() -> None:
    other = np.where(MASK, PROMPTS, (PROMPTS + 1) % CONFIG.vocab_size)
    assert tokens_of(other, MASK) == tokens_of(PROMPTS, MASK)


def stopped(row: list[int], prompt: int, eos: list[int]) -> list[int]:
    """A row cut behind the first of these tokens that is new."""
    ends = [i for i, token in enumerate(row) if i >= prompt and token in eos]
    return row[: ends[0] + 1] if ends else row


@pytest.mark.parametrize("several", [False, True])
def test_eos_stops_each_row_alone(several: bool) -> None:
    full = tokens_of(PROMPTS, MASK)
    eos = [full[0][7], full[1][5]] if several else [full[0][7]]
    expected = [stopped(row, n, eos) for row, n in zip(full, LENGTHS, strict=True)]
    assert len({len(row) - n for row, n in zip(expected, LENGTHS, strict=True)}) > 1
    model, given = build(CONFIG), eos if several else eos[0]
    for pad in (None, 9):
        output = generate(
            model, PROMPTS, MASK, max_new_tokens=NEW, eos_token_id=given, pad_token_id=pad
        )
        sequences, lengths = output.sequences.tolist(), output.lengths.tolist()
        assert lengths == [len(row) for row in expected]
        filler = eos[0] if pad is None else pad
        longest = max(lengths)
        assert sequences == [row + [filler] * (longest - len(row)) for row in expected]


def test_it_ends_when_all_rows_have() -> None:
    first = tokens_of(PROMPTS[:1])[0][5]
    steps: list[Any] = []
    output = generate(
        build(CONFIG),
        PROMPTS[:1],
        max_new_tokens=NEW,
        eos_token_id=first,
        on_tokens=lambda tokens, active: steps.append(tokens),
    )
    assert len(steps) == 1
    assert output.sequences.tolist() == [[*PROMPTS[0].tolist(), first]]


def test_an_eos_in_the_prompt_does_not_stop_it() -> None:
    full = tokens_of(PROMPTS[:1])[0]
    absent = next(int(token) for token in PROMPTS[0] if token not in full[5:])
    assert tokens_of(PROMPTS[:1], eos_token_id=absent) == [full]


def test_the_cache_grows_on_the_way() -> None:
    prompts = random_ids(CONFIG, 8, 62, seed=3)  # so many that one lost token turns some argmax
    assert tokens_of(prompts, max_new_tokens=6) == [naive(prompt, 6) for prompt in prompts]


def test_it_may_end_exactly_at_the_limit() -> None:
    prompt = random_ids(CONFIG, 1, 97, seed=3)
    assert tokens_of(prompt, max_new_tokens=3) == [naive(prompt[0], 3)]


def test_tokens_are_handed_out_as_they_come() -> None:
    full = tokens_of(PROMPTS, MASK)
    eos, seen, actives = full[1][4], [], []

    def on_tokens(tokens: Array, active: Array) -> None:
        seen.append(tokens.tolist())
        actives.append(active.tolist())

    output = generate(
        build(CONFIG), PROMPTS, MASK, max_new_tokens=NEW, eos_token_id=eos, on_tokens=on_tokens
    )
    lengths = output.lengths.tolist()
    assert actives[0] == [True, True, True]
    assert [False in active for active in actives].count(True) > 0
    for row, start in enumerate(LENGTHS):
        said = [tokens[row] for tokens, active in zip(seen, actives, strict=True) if active[row]]
        assert said == full[row][start : lengths[row]]


def test_the_output_is_of_these_kinds() -> None:
    output = generate(build(CONFIG), PROMPTS.tolist(), MASK.tolist(), max_new_tokens=1)
    assert isinstance(output, diy_jax.GenerateOutput)
    assert output.sequences.dtype == jnp.int32
    assert output.lengths.dtype == jnp.int32
    assert output.sequences.shape == (3, 6)
    assert output.lengths.tolist() == [6, 3, 5]


def test_arrays_are_taken_too() -> None:
    given = jnp.asarray(PROMPTS), jnp.asarray(MASK)
    assert tokens_of(*given) == tokens_of(PROMPTS, MASK)


@pytest.mark.parametrize("case", GENERATE_CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_with_words_that_help(case: Case) -> None:
    model = Built(diy_jax.DIYForCausalLM(SMALL), {})
    with pytest.raises(ValueError, match=case.message):
        generate(model, **({"input_ids": IDS, "max_new_tokens": 2} | case.kwargs))


def compilations(config: Any, prompt: int, new_tokens: int, batch: int = 1) -> int:
    """How many steps a call compiles."""
    before = compiled_step._cache_size()
    ids = random_ids(config, batch, prompt)
    generate(build(config), ids, max_new_tokens=new_tokens)
    return int(compiled_step._cache_size()) - before


def test_one_prefill_and_one_decode_step_are_compiled_per_capacity() -> None:
    config = tiny(num_hidden_layers=1, rms_norm_eps=3e-5)  # compiled by no other test
    assert compilations(config, prompt=5, new_tokens=6) == 2
    assert compilations(config, prompt=5, new_tokens=6) == 0
    assert compilations(config, prompt=9, new_tokens=20) == 0  # of the same capacity
    assert compilations(config, prompt=64, new_tokens=1) == 0
    assert compilations(config, prompt=60, new_tokens=9) == 1  # decoding grows to 128
    assert compilations(config, prompt=70, new_tokens=9) == 1  # and that is the prefill of 128
    assert compilations(config, prompt=100, new_tokens=20) == 0


def test_a_model_that_is_not_finite_generates_nothing() -> None:
    model = build(CONFIG)
    params = jax.tree.map(lambda array: array, model.params)
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"].at[0, 7].set(np.nan)
    with pytest.raises(ValueError, match="logits of row 0 are not finite after 5 tokens"):
        diy_jax.generate(model.model, params, PROMPTS[:1], max_new_tokens=2)


def test_params_are_not_donated() -> None:
    model = build(CONFIG)
    generate(model, PROMPTS[:1], max_new_tokens=2)
    assert np.isfinite(run(model, np.zeros((1, 100), np.int32))).all()
