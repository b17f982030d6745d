"""Prompts as people have them: padded on either side, or as many lists of different lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core import validate
from diy_core.arrays import as_host_array
from diy_core.config import DIYConfig

_ADVICE = "give a list of prompts, each of them a list of token ids, such as [[1, 2], [3]]"
_MASK_ADVICE = "give it one value for each token of input_ids"


def pad_right(
    input_ids: Any, attention_mask: Any, config: DIYConfig, max_new_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Prompts moved to the left edge, padding after them, and their lengths.

    Args:
        input_ids: integers (B, S), padded on either side, or B sequences of different lengths.
        attention_mask: 0 and 1 in the same shape, or None where nothing is padded.
        config: of the model.
        max_new_tokens: that will follow.

    Raises:
        ValueError: anything that is not a prompt of this model, or is too long for it.
    """
    if isinstance(input_ids, Mapping):
        raise ValueError(
            f"input_ids is a {type(input_ids).__name__}, as tokenizers give it: pass its input_ids "
            "and attention_mask"
        )
    input_ids, attention_mask = _rectangular(_plain_rows(input_ids), _plain_rows(attention_mask))
    ids = as_host_array("input_ids", input_ids, _ADVICE)
    mask = np.ones(ids.shape, bool)
    if attention_mask is not None:
        mask = as_host_array("attention_mask", attention_mask, _MASK_ADVICE)
        if mask.shape == ids.shape:
            ids, mask = _to_the_left_edge(ids, mask)
    if ids.ndim == 2 and mask.shape == ids.shape:
        _refuse_too_long(int((mask != 0).sum(axis=1).max(initial=0)), max_new_tokens, config)
    validate.check_input_ids(ids.shape, str(ids.dtype), ids, config)
    validate.check_attention_mask(mask.shape, mask, ids.shape, has_cache=False)
    lengths = mask.astype(bool).sum(axis=1).astype(np.int32)
    return ids[:, : lengths.max()].astype(np.int32), lengths


def _plain_rows(value: Any) -> Any:
    """A list of arrays of any library as one of numpy's, and an array of objects as a list."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return value
    return [np.asarray(row) if hasattr(row, "__array__") and np.ndim(row) else row for row in value]


def _rectangular(input_ids: Any, attention_mask: Any) -> tuple[Any, Any]:
    """Lists of different lengths padded with zeros, and the mask that says so; others as is.

    A mask in lists of just those lengths, as tokenizers give it, is padded too.
    """
    lengths = _lengths(input_ids)
    if lengths == []:
        raise ValueError("input_ids is empty: give at least one prompt")
    if lengths is not None and 0 in lengths:
        raise ValueError(
            f"input_ids row {lengths.index(0)} is empty: a prompt needs at least one token"
        )
    if lengths is None or len(set(lengths)) == 1:
        return input_ids, attention_mask
    rows = [as_host_array(f"input_ids row {i}", row, _ADVICE) for i, row in enumerate(input_ids)]
    if wrong := [i for i, row in enumerate(rows) if row.ndim != 1]:
        raise ValueError(f"input_ids row {wrong[0]} must be a list of token ids")
    if attention_mask is None:
        masks = [np.ones(length, np.int32) for length in lengths]
    elif _lengths(attention_mask) == lengths:
        masks = [as_host_array("attention_mask", row, _MASK_ADVICE) for row in attention_mask]
    else:
        raise ValueError(
            "attention_mask must have the rows of input_ids, which are of different lengths: leave "
            "it out, or give it one value for each token"
        )
    return _padded(rows), _padded(masks)


def _lengths(rows: Any) -> list[int] | None:
    """Of each row, where there is a list of lists or of arrays; else None."""
    if not isinstance(rows, (list, tuple)):
        return None
    if not all(_is_sequence(row) for row in rows):
        return None
    return [len(row) for row in rows]


def _is_sequence(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _padded(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    result = np.zeros((len(rows), max(map(len, rows))), np.result_type(*rows))
    for i, row in enumerate(rows):
        result[i, : len(row)] = row
    return result


def _to_the_left_edge(ids: NDArray[Any], mask: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows padded on the left start at their first token: they are the same prompts.

    A row with holes or other values stays, so that the error names the column that the user sees.
    """
    if ids.ndim != 2 or 0 in ids.shape:
        return ids, mask
    tokens, columns = mask != 0, np.arange(ids.shape[1])[None, :]
    first = tokens.argmax(axis=1)
    one_run = tokens.sum(axis=1) == columns.shape[1] - tokens[:, ::-1].argmax(axis=1) - first
    shift = np.where(one_run & np.isin(mask, (0, 1)).all(axis=1), first, 0)
    order = (columns + shift[:, None]) % columns.shape[1]
    return np.take_along_axis(ids, order, 1), np.take_along_axis(mask, order, 1)


def _refuse_too_long(longest: int, max_new_tokens: int, config: DIYConfig) -> None:
    room = config.max_position_embeddings - longest
    if room >= max_new_tokens:
        return
    advice = f"at most {room} new tokens fit" if room > 0 else "shorten the prompt"
    raise ValueError(
        f"a prompt of {longest} tokens and max_new_tokens ({max_new_tokens}) make "
        f"{longest + max_new_tokens}, beyond max_position_embeddings "
        f"({config.max_position_embeddings}): {advice}"
    )
