from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

import diy_torch
from diy_torch import generate
from tests.bad_inputs import CONFIG as SMALL
from tests.bad_inputs import GENERATE_CASES, IDS, Case
from tests.oracles import Array, random_ids, tiny
from tests.torch_twin.build import build, run

# Untied, since a tied random model repeats itself; the argmax is decided in float64.
CONFIG = tiny(tie_word_embeddings=False, num_hidden_layers=1, max_position_embeddings=100)
PROMPTS, LENGTHS = random_ids(CONFIG, 3, 5), [5, 2, 4]
MASK = np.arange(5)[None, :] < np.array(LENGTHS)[:, None]
NEW = 8


def naive(prompt: Array, new_tokens: int) -> list[int]:
    """The whole sequence again for each token, no cache."""
    model, tokens = build(CONFIG), prompt.tolist()
    for _ in range(new_tokens):
        tokens.append(int(run(model, [tokens])[0, -1].argmax()))
    return tokens


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
    assert tokens_of([torch.tensor(prompt) for prompt in prompts]) == expected


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
    assert isinstance(output, diy_torch.GenerateOutput)
    assert output.sequences.dtype == torch.int64
    assert output.lengths.dtype == torch.int32
    assert output.sequences.shape == (3, 6)
    assert output.lengths.tolist() == [6, 3, 5]


def test_tensors_are_taken_too() -> None:
    given = torch.from_numpy(PROMPTS), torch.from_numpy(MASK)
    assert tokens_of(*given) == tokens_of(PROMPTS, MASK)


@pytest.mark.parametrize("case", GENERATE_CASES, ids=lambda case: case.name)
def test_bad_input_is_refused_with_words_that_help(case: Case) -> None:
    model = diy_torch.DIYForCausalLM(SMALL)
    with pytest.raises(ValueError, match=case.message):
        generate(model, **({"input_ids": IDS, "max_new_tokens": 2} | case.kwargs))


def test_a_training_model_is_left_as_it_was() -> None:
    model = build(CONFIG).train()
    generate(model, PROMPTS, max_new_tokens=2)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model(PROMPTS).sum().backward()


def test_a_model_that_is_not_finite_generates_nothing() -> None:
    model = copy.deepcopy(build(CONFIG))
    with torch.no_grad():
        model.lm_head.weight[7, 0] = np.nan
    with pytest.raises(ValueError, match="logits of row 0 are not finite after 5 tokens"):
        generate(model, PROMPTS[:1], max_new_tokens=2)
