"""Checks of input, case by case; what is refused is refused by name, place and value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diy_core import DIYConfig, validate

CONFIG = DIYConfig(
    vocab_size=10,
    hidden_size=8,
    intermediate_size=4,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    max_position_embeddings=5,
)


def refused(words: str) -> Any:
    return pytest.raises(ValueError, match=words)


def check_ids(values: Any) -> None:
    ids = np.asarray(values)
    validate.check_input_ids(ids.shape, str(ids.dtype), ids, CONFIG)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "int64", "uint64"])
def test_ids_within_the_vocabulary_pass(dtype: str) -> None:
    check_ids(np.array([[0, 9], [3, 4]], dtype))
    check_ids(np.ones((1, 5), dtype))


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([[0, 10]], r"must lie in 0\.\.9 \(vocab_size 10\), got 10 at row 0, column 1$"),
        ([[0, 1], [-1, 10]], "got -1 at row 1, column 0$"),
        ([[2**40]], "got 1099511627776 at row 0, column 0$"),
        ([[2**32]], "got 4294967296 at row 0"),  # 0 once cast to int32
        (np.array([[2**64 - 1]], np.uint64), "got 18446744073709551615 at row 0"),
        ([[1.0]], "must be integers, got dtype float64$"),
        ([[True]], "must be integers, got dtype bool$"),
        (
            [1, 2],
            r"must have shape \(batch, sequence\), none of it 0; got \(2,\), one row without "
            r"a batch; wrap it: \[\[1, 2\]\]$",
        ),
        ([[[1]]], r"got \(1, 1, 1\)$"),
        (np.ones((0, 3), int), r"got \(0, 3\)$"),
        (np.ones((3, 0), int), r"got \(3, 0\)$"),
        (np.ones((1, 6), int), r"6 columns: a sequence of 6 is beyond max_position_embeddings \(5"),
    ],
)
def test_bad_ids_are_refused(ids: Any, words: str) -> None:
    with refused(f"^input_ids.*{words}"):
        check_ids(ids)


def test_shape_and_dtype_are_checked_where_values_cannot_be_seen() -> None:
    validate.check_input_ids((2, 3), "int32", None, CONFIG)
    validate.check_attention_mask((2, 3), None, (2, 3), has_cache=False)
    validate.check_seq_lengths((2,), "int32", None, (2, 3), has_cache=False)
    with refused("float32"):
        validate.check_input_ids((2, 3), "float32", None, CONFIG)
    with refused(r"beyond max_position_embeddings \(5\)"):
        validate.check_input_ids((2, 6), "int32", None, CONFIG)
    with refused(r"shape of input_ids \(2, 3\), got \(2, 4\)"):
        validate.check_attention_mask((2, 4), None, (2, 3), has_cache=False)
    with refused(r"shape \(2,\), one per row, got \(3,\)"):
        validate.check_seq_lengths((3,), "int32", None, (2, 3), has_cache=False)


def check_mask(values: Any, has_cache: bool = False) -> None:
    mask = np.asarray(values)
    validate.check_attention_mask(mask.shape, mask, (len(mask), 4), has_cache)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int64, np.float32])
def test_ones_followed_by_zeros_pass(dtype: Any) -> None:
    check_mask(np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]], dtype))
    check_mask(np.array([[0, 0, 0, 0], [1, 0, 0, 0]], dtype), has_cache=True)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([0, 1, 1, 1], r"padded on the left \(first token at column 1\): pad on the right"),
        ([0, 0, 0, 1], r"padded on the left \(first token at column 3\)"),
        ([0, 1, 1, 0], r"padded on the left \(first token at column 1\)"),
        ([1, 0, 1, 1], "has a hole at column 1: tokens must come first"),
        ([1, 1, 0, 1], "has a hole at column 2"),
        ([1, 0, 0, 1], "has a hole at column 1"),
        ([0, 1, 0, 1], "has a hole at column 2"),
        ([0, 0, 0, 0], "has no tokens: only a call with past_key_values may leave a row empty"),
    ],
)
def test_any_other_mask_is_refused_by_row(row: list[int], words: str) -> None:
    with refused(f"^attention_mask row 1 (is )?{words}"):
        check_mask([[1, 1, 0, 0], row])


@pytest.mark.parametrize("value", [2, -1, 0.5, np.nan, np.inf])
def test_other_values_in_a_mask_are_refused(value: float) -> None:
    with refused(rf"0 and 1 only .*, got {value}(\.0)? at row 1, column 2$"):
        check_mask([[1, 1, 1, 1], [1, 1, value, 0]])


def test_a_mask_covers_this_calls_tokens() -> None:
    with refused(r"shape of input_ids \(1, 4\), got \(1, 5\); with a cache it covers this call's"):
        check_mask([[1, 1, 1, 1, 1]])


def check_lengths(values: Any, mask: Any = None, has_cache: bool = False) -> None:
    lengths = np.asarray(values)
    mask_lengths = None if mask is None else np.asarray(mask)
    validate.check_seq_lengths(
        lengths.shape, str(lengths.dtype), lengths, (2, 4), has_cache, mask_lengths
    )


def test_lengths_from_one_to_all_columns_pass() -> None:
    check_lengths([1, 4])
    check_lengths(np.array([1, 4], np.uint8))
    check_lengths([0, 4], has_cache=True)
    check_lengths([3, 2], mask=[3, 2])


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ([1, 5], r"must lie in 0\.\.4 \(the columns of input_ids\), got 5 at row 1$"),
        ([-1, 4], "got -1 at row 0$"),
        ([4, 0], "row 1 has no tokens"),
        ([1.0, 2.0], "must be integers, got dtype float64"),
        ([True, True], "must be integers, got dtype bool"),
        ([1, 2, 3], r"must have shape \(2,\), one per row, got \(3,\)"),
        ([[1, 2]], r"got \(1, 2\)"),
        (3, r"got \(\)"),
    ],
)
def test_bad_lengths_are_refused(lengths: Any, words: str) -> None:
    with refused(f"^seq_lengths.*{words}"):
        check_lengths(lengths)


def test_mask_and_lengths_must_agree() -> None:
    with refused("disagree at row 1: 2 ones against a length of 3; pass one of them"):
        check_lengths([4, 3], mask=[4, 2])


def test_segments_are_integers_of_the_shape_of_the_ids_and_never_cached() -> None:
    validate.check_segment_ids((2, 4), "int32", (2, 4), cached=False)
    with refused("segment_ids cannot go together with past_key_values or use_cache"):
        validate.check_segment_ids((2, 4), "int32", (2, 4), cached=True)
    with refused("segment_ids must be integers, got dtype float32"):
        validate.check_segment_ids((2, 4), "float32", (2, 4), cached=False)
    with refused(r"segment_ids must have the shape of input_ids \(2, 4\), got \(2, 5\)"):
        validate.check_segment_ids((2, 5), "int32", (2, 4), cached=False)


@pytest.mark.parametrize("keep", [0, 1, 4])
def test_logits_to_keep_lie_within_the_columns(keep: int) -> None:
    validate.check_logits_to_keep(keep, 4)


@pytest.mark.parametrize("keep", [-1, 5, 1.0, None, "1"])
def test_other_logits_to_keep_are_refused(keep: Any) -> None:
    with refused(rf"logits_to_keep must lie in 0\.\.4 .*, got {keep!r}$"):
        validate.check_logits_to_keep(keep, 4)


@pytest.mark.parametrize(
    ("shape", "dtype", "words"),
    [
        ((2, 3), "bool", "labels must be integers, got dtype bool"),
        ((2, 3), "float32", "labels must be integers, got dtype float32"),
        ((3, 2), "int64", r"labels must have the shape of the tokens \(2, 3\), got \(3, 2\)"),
        ((2, 2), "int32", r"labels must have the shape of the tokens \(2, 3\), got \(2, 2\)"),
    ],
)
def test_labels_are_integers_one_for_each_token(
    shape: tuple[int, ...], dtype: str, words: str
) -> None:
    validate.check_label_form((2, 3), "int8", (2, 3))
    with pytest.raises(ValueError, match=words):
        validate.check_label_form(shape, dtype, (2, 3))
    with refused("none of it 0"):
        validate.check_label_form((0, 3), "int8", (0, 3))


@pytest.mark.parametrize("chunk", [1, 1024, np.int64(5)])
def test_a_chunk_is_a_number_of_tokens(chunk: Any) -> None:
    assert validate.check_chunk_tokens(chunk) == chunk


@pytest.mark.parametrize("chunk", [0, -1, 1.5, True, None, "8"])
def test_a_chunk_that_holds_no_number_of_tokens_is_refused(chunk: Any) -> None:
    with refused("chunk_tokens must be"):
        validate.check_chunk_tokens(chunk)
