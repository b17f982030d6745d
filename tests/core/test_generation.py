"""The host's side of generation: prompts moved to the left edge, rows that stop alone."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from diy_core import DIYConfig
from diy_core.generation import NOT_FINITE, Rows

CONFIG = DIYConfig(
    vocab_size=10,
    hidden_size=4,
    intermediate_size=4,
    num_hidden_layers=1,
    num_attention_heads=1,
    max_position_embeddings=8,
)


def rows(ids: Any, mask: Any = None, **change: Any) -> Rows:
    options = {"max_new_tokens": 3, "eos_token_id": None, "pad_token_id": None} | change
    return Rows(CONFIG, ids, mask, **options)


def test_prompts_without_a_mask_are_taken_whole() -> None:
    found = rows([[1, 2, 3], [4, 5, 6]])
    assert found.prompts.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found.prompt_lengths.tolist() == [3, 3]
    assert (found.prompts.dtype, found.prompt_lengths.dtype) == (np.int32, np.int32)


@pytest.mark.parametrize(
    ("mask", "prompts", "lengths"),
    [
        ([[1, 1, 1, 1], [1, 1, 1, 1]], [[1, 2, 3, 4], [5, 6, 7, 8]], [4, 4]),
        ([[1, 1, 0, 0], [1, 1, 1, 0]], [[1, 2, 3], [5, 6, 7]], [2, 3]),  # padded on the right
        ([[0, 0, 1, 1], [0, 1, 1, 1]], [[3, 4, 1], [6, 7, 8]], [2, 3]),  # on the left
        ([[0, 0, 0, 1], [1, 0, 0, 0]], [[4], [5]], [1, 1]),
        ([[0, 1, 1, 0], [1, 1, 1, 1]], [[2, 3, 4, 1], [5, 6, 7, 8]], [2, 4]),  # on both
        ([[False, True, True, True], [True] * 4], [[2, 3, 4, 1], [5, 6, 7, 8]], [3, 4]),
    ],
)
def test_padding_on_either_side_moves_to_the_right(
    mask: list[list[int]], prompts: list[list[int]], lengths: list[int]
) -> None:
    found = rows([[1, 2, 3, 4], [5, 6, 7, 8]], mask)
    assert found.prompts.tolist() == prompts
    assert found.prompt_lengths.tolist() == lengths


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1, 0, 1, 0]], "row 0 has a hole at column 1"),
        ([[0, 1, 0, 1]], "row 0 has a hole at column 2"),
        ([[0, 0, 2, 1]], "got 2 at row 0, column 2"),
        ([[0, 0, 0, 0]], "row 0 has no tokens"),
        ([[1, 1, 1]], "must have the shape of input_ids (1, 4), got (1, 3)"),
        ([[1, 1], [1]], "attention_mask must be a rectangular array"),
    ],
)
def test_another_mask_is_refused_at_the_column_where_it_is_wrong(mask: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        rows([[1, 2, 3, 4]], mask)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        ([[1, 2], [3], [4, 5, 6]], None),
        ([np.array([1, 2]), np.array([3]), np.array([4, 5, 6])], None),
        (([1, 2], (3,), range(4, 7)), None),
        (np.array([[1, 2], [3], [4, 5, 6]], object), None),
        ([torch.tensor([1, 2]), jnp.array([3]), np.array([4, 5, 6])], None),
        ([[1, 2], [3], [4, 5, 6]], [[1, 1], [1], [1, 1, 1]]),
        ([[1, 2], [9, 9, 9, 3], [4, 5, 6]], [[1, 1], [0, 0, 0, 1], [1, 1, 1]]),
    ],
)
def test_prompts_of_different_lengths_are_padded(ids: Any, mask: Any) -> None:
    found = rows(ids, mask)
    assert found.prompts.tolist() == [[1, 2, 0], [3, 0, 0], [4, 5, 6]] or mask is not None
    assert found.prompt_lengths.tolist() == [2, 1, 3]
    for row, length, prompt in zip(
        found.prompts, found.prompt_lengths, [[1, 2], [3], [4, 5, 6]], strict=True
    ):
        assert row[:length].tolist() == prompt
    assert (found.prompts.dtype, found.prompt_lengths.dtype) == (np.int32, np.int32)


def test_a_mask_is_told_no_word_of_other_functions() -> None:
    with pytest.raises(ValueError) as error:
        rows([[1, 2, 3, 4]], [[1, 1], [1]])
    assert "seq_lengths" not in str(error.value)


def test_each_row_stops_alone() -> None:
    batch = rows(
        [[1, 2, 0], [3, 4, 5], [6, 0, 0]],
        [[1, 1, 0], [1, 1, 1], [1, 0, 0]],
        eos_token_id=[8, 9],
        pad_token_id=0,
        max_new_tokens=4,
    )
    steps = []
    for tokens in ([7, 9, 7], [8, 5, 7], [5, 5, 7], [5, 5, 6]):
        assert batch.going
        batch.accept(np.array(tokens))
        steps.append([array.tolist() for array in batch.step])
    assert not batch.going
    assert steps == [
        [[[7], [9], [7]], [1, 0, 1]],
        [[[8], [0], [7]], [0, 0, 1]],
        [[[0], [0], [7]], [0, 0, 1]],
        [[[0], [0], [6]], [0, 0, 1]],
    ]
    assert batch.sequences().tolist() == [[1, 2, 7, 8, 0], [3, 4, 5, 9, 0], [6, 7, 7, 7, 6]]
    assert batch.lengths.tolist() == [4, 4, 5]
    assert batch.sequences().dtype == batch.step[0].dtype == batch.step[1].dtype == np.int32


def test_logits_that_are_not_finite_end_it_with_a_word() -> None:
    batch = rows([[1], [2], [3]], eos_token_id=9)
    batch.accept(np.array([9, 3, 4]))
    batch.accept(np.array([NOT_FINITE, 3, 4]))  # of a row that is finished
    with pytest.raises(ValueError, match="logits of row 2 are not finite after 3 tokens"):
        batch.accept(np.array([0, 3, NOT_FINITE]))


def test_all_rows_finished_ends_it_before_max_new_tokens() -> None:
    batch = rows([[1], [2]], eos_token_id=9, max_new_tokens=5)
    batch.accept(np.array([9, 3]))
    assert batch.going
    batch.accept(np.array([4, 9]))
    assert not batch.going
    assert batch.sequences().tolist() == [[1, 9, 9], [2, 3, 9]]
    assert batch.lengths.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("eos", "pad", "filler"),
    [
        (None, None, 0),
        (9, None, 9),
        ([8, 9], None, 8),
        (9, 0, 0),
        (None, 4, 4),
        (np.int64(7), 5, 5),
    ],
)
def test_short_rows_are_filled_with_pad_or_eos_or_zero(eos: Any, pad: Any, filler: int) -> None:
    batch = rows([[1, 2], [3, 3]], [[1, 0], [1, 1]], eos_token_id=eos, pad_token_id=pad)
    batch.accept(np.array([5, 6]))
    assert batch.sequences().tolist() == [[1, 5, filler], [3, 3, 6]]


def test_without_eos_no_token_ends_a_row() -> None:
    batch = rows([[1]], max_new_tokens=2)
    batch.accept(np.array([0]))
    assert batch.going
    batch.accept(np.array([0]))
    assert batch.sequences().tolist() == [[1, 0, 0]]


def test_a_prompt_may_end_exactly_at_the_longest_sequence() -> None:
    assert rows([[1] * 5], max_new_tokens=3).going
    padded = rows(
        [[0, 0, 0, 1, 1, 1, 1, 1]], [[0, 0, 0, 1, 1, 1, 1, 1]], max_new_tokens=np.int64(3)
    )
    assert padded.prompt_lengths.tolist() == [5]
    words = r"a prompt of 6 tokens and max_new_tokens \(3\) make 9, beyond max_position_embeddings "
    with pytest.raises(ValueError, match=words + r"\(8\)"):
        rows([[1] * 6], max_new_tokens=3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *[
            ({"max_new_tokens": bad}, f"max_new_tokens must be a positive integer, got {bad!r}")
            for bad in (0, -1, 1.0, None, "3", True)
        ],
        *[
            ({name: bad}, f"{name} must lie in 0..9, got {shown!r}")
            for name in ("eos_token_id", "pad_token_id")
            for bad, shown in (
                (10, 10),
                (-1, -1),
                ([3, 10], 10),
                (1.0, 1.0),
                (True, True),
                ("9", "9"),
                ("", ""),
                (b"\x01", b"\x01"),
                (np.array(10), np.int64(10)),
            )
        ],
        ({"pad_token_id": [1, 2]}, "pad_token_id must be one id, got [1, 2]"),
        ({"ids": [[1, 10]]}, "got 10 at row 0, column 1"),
        ({"ids": [[1.0]]}, "input_ids must be integers"),
        ({"ids": [1, 2]}, "input_ids must have shape (batch, sequence)"),
        ({"ids": [[1, 2], []]}, "input_ids row 1 is empty: a prompt needs at least one token"),
        ({"ids": [[]]}, "input_ids row 0 is empty"),
        ({"ids": np.zeros((1, 0), int)}, "none of it 0; got (1, 0)"),
        ({"ids": []}, "input_ids is empty: give at least one prompt"),
        ({"ids": [[1, 2], 3]}, "or other objects: give a list of prompts, each of them a list of"),
        ({"ids": None}, "got None: give a list of prompts, each of them a list of token"),
        ({"ids": [np.array(1), np.array(2)]}, "input_ids must have shape (batch, sequence)"),
        ({"ids": {"input_ids": [[1]]}}, "is a dict, as tokenizers give it: pass its input_ids"),
        ({"ids": [[1, 2], [[3]]]}, "input_ids row 1 must be a list of token ids"),
        (
            {"ids": [[1, 2], ["a"]]},
            "input_ids row 1 must hold token ids, got text; encode it first",
        ),
        ({"ids": [[1, 2], [10]]}, "got 10 at row 1, column 0"),
        ({"ids": [[1, 2], [3]], "mask": [[1, 1], [1, 1]]}, "attention_mask must have the rows of"),
        ({"ids": [[1, 2], [3]], "mask": [[0, 0], [1]]}, "attention_mask row 0 has no tokens"),
        ({"ids": [[1] * 6, [1]]}, "make 9, beyond max_position_embeddings (8): at most 2 new to"),
        ({"ids": [[1] * 8]}, "beyond max_position_embeddings (8): shorten the prompt"),
        ({"ids": [["a"]]}, "input_ids must hold token ids, got text; encode it first"),
        ({"ids": [[1] * 9]}, "beyond max_position_embeddings (8)"),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        rows(**({"ids": [[1]]} | change))
    assert words in str(error.value)
