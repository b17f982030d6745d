"""Checks of what users hand in, in numpy, so that both twins raise the same words.

A twin passes shapes and dtypes always, and values where it can see them without waiting for a
device: `values=None` means that they cannot be seen (under `jit`, on an accelerator), and only
shapes are checked then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.config import DIYConfig

Values = NDArray[Any] | None
_WRITTEN_OUT = 8  # ids of a row that an error shows
IGNORED = -100  # the label of a position that does not count


def check_input_ids(shape: Sequence[int], dtype: str, values: Values, config: DIYConfig) -> None:
    """Token ids are integers (B, S) in 0 .. vocab_size - 1, S at most `max_position_embeddings`.

    Raises:
        ValueError: anything else; unchecked, Flax silently answers NaN or wraps around.
    """
    shape = tuple(shape)
    if not is_integer(dtype):
        raise ValueError(f"input_ids must be integers, got dtype {dtype}")
    if len(shape) != 2 or 0 in shape:
        wrap = ""
        if len(shape) == 1 and shape[0]:
            shown = values is not None and shape[0] <= _WRITTEN_OUT
            row = np.asarray(values).tolist() if shown else "input_ids"
            wrap = f", one row without a batch; wrap it: [{row}]"
        raise ValueError(
            f"input_ids must have shape (batch, sequence), none of it 0; got {shape}{wrap}"
        )
    if shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"input_ids has {shape[1]} columns: a sequence of {shape[1]} is beyond "
            f"max_position_embeddings ({config.max_position_embeddings})"
        )
    if values is None:
        return
    vocab_size = config.vocab_size
    bad = (values < 0) | (values >= vocab_size)
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"input_ids must lie in 0..{vocab_size - 1} (vocab_size {vocab_size}), got "
            f"{int(values[row, column])} at row {row}, column {column}"
        )


def check_attention_mask(
    shape: Sequence[int], values: Values, ids_shape: Sequence[int], has_cache: bool
) -> None:
    """A mask (B, S) of ones followed by zeros, 1 = token, 0 = padding.

    Only for such a mask is the sum of a row its length; every other mask is refused.

    Raises:
        ValueError: wrong shape, other values, left padding, holes, or (with no cache) an empty row.
    """
    if tuple(shape) != tuple(ids_shape):
        raise ValueError(
            f"attention_mask must have the shape of input_ids {tuple(ids_shape)}, got "
            f"{tuple(shape)}; with a cache it covers this call's tokens only"
        )
    if values is None:
        return
    bad = (values != 0) & (values != 1)
    if bad.any():
        row, column = np.argwhere(bad)[0].tolist()
        raise ValueError(
            f"attention_mask must hold 0 and 1 only (1 = token, 0 = padding), got "
            f"{values[row, column]} at row {row}, column {column}"
        )
    mask = values.astype(bool)
    lengths = mask.sum(axis=1)
    straight = np.arange(mask.shape[1])[None, :] < lengths[:, None]
    for row in np.flatnonzero((mask != straight).any(axis=1)).tolist():
        first, last = int(mask[row].argmax()), mask.shape[1] - 1 - int(mask[row, ::-1].argmax())
        if first > 0 and mask[row, first : last + 1].all():
            raise ValueError(
                f"attention_mask row {row} is padded on the left (first token at column {first}): "
                "pad on the right (tokenizer.padding_side = 'right'); generate() accepts both sides"
            )
        hole = first + int((~mask[row, first:]).argmax())
        raise ValueError(
            f"attention_mask row {row} has a hole at column {hole}: tokens must come first and "
            "padding after them; remove the tokens in the hole instead of masking them"
        )
    _refuse_empty_rows("attention_mask", lengths, has_cache)


def check_seq_lengths(
    shape: Sequence[int],
    dtype: str,
    values: Values,
    ids_shape: Sequence[int],
    has_cache: bool,
    mask_lengths: Values = None,
) -> None:
    """Lengths (B,): how many leading tokens of each row of this call are valid.

    Raises:
        ValueError: not integers, wrong shape, out of range, empty rows without a cache, or a
            contradiction with the attention mask.
    """
    batch, sequence = ids_shape
    if not is_integer(dtype):
        raise ValueError(f"seq_lengths must be integers, got dtype {dtype}")
    if tuple(shape) != (batch,):
        raise ValueError(f"seq_lengths must have shape ({batch},), one per row, got {tuple(shape)}")
    if values is None:
        return
    bad = np.flatnonzero((values < 0) | (values > sequence))
    if bad.size:
        raise ValueError(
            f"seq_lengths must lie in 0..{sequence} (the columns of input_ids), got "
            f"{int(values[bad[0]])} at row {bad[0]}"
        )
    if mask_lengths is not None and (mask_lengths != values).any():
        row = int(np.flatnonzero(mask_lengths != values)[0])
        raise ValueError(
            f"attention_mask and seq_lengths disagree at row {row}: {int(mask_lengths[row])} ones "
            f"against a length of {int(values[row])}; pass one of them"
        )
    _refuse_empty_rows("seq_lengths", values, has_cache)


def check_segment_ids(
    shape: Sequence[int], dtype: str, ids_shape: Sequence[int], cached: bool
) -> None:
    """Segments (B, S): which packed document each token belongs to, equal ids side by side.

    Raises:
        ValueError: not integers, wrong shape, or together with a cache.
    """
    if cached:
        raise ValueError(
            "segment_ids cannot go together with past_key_values or use_cache: packed documents "
            "are for training; decode each document as a row of its own"
        )
    if not is_integer(dtype):
        raise ValueError(f"segment_ids must be integers, got dtype {dtype}")
    if tuple(shape) != tuple(ids_shape):
        raise ValueError(
            f"segment_ids must have the shape of input_ids {tuple(ids_shape)}, got {tuple(shape)}"
        )


def check_label_form(shape: Sequence[int], dtype: str, hidden_shape: Sequence[int]) -> None:
    """Labels are integers (B, S), one for each hidden state.

    Raises:
        ValueError: anything else; of a transposed array a loss would come out all the same.
    """
    if not is_integer(dtype):
        raise ValueError(f"labels must be integers, got dtype {dtype}")
    if tuple(shape) != tuple(hidden_shape):
        raise ValueError(
            f"labels must have the shape of the tokens {tuple(hidden_shape)}, got {tuple(shape)}"
        )
    if 0 in tuple(shape):
        raise ValueError(
            f"labels must have shape (batch, sequence), none of it 0; got {tuple(shape)}"
        )


def check_chunk_tokens(chunk_tokens: Any) -> int:
    """How many tokens have their logits at once: 1 or more.

    Returns:
        A plain integer.

    Raises:
        ValueError: anything else.
    """
    if not is_whole(chunk_tokens):
        raise ValueError(f"chunk_tokens must be an integer, got {chunk_tokens!r}")
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    return int(chunk_tokens)


def check_labels(values: Values, vocab_size: int) -> None:
    """Labels are token ids in 0 .. vocab_size - 1, or -100 where nothing is counted.

    Raises:
        ValueError: any other label; unchecked, some devices silently wrap around or answer NaN.
    """
    if values is None:
        return
    if not is_integer(str(values.dtype)):
        raise ValueError(f"labels must be integers, got dtype {values.dtype}")
    bad = (values != IGNORED) & ((values < 0) | (values >= vocab_size))
    if bad.any():
        place = tuple(np.argwhere(bad)[0].tolist())
        raise ValueError(
            f"labels must lie in 0..{vocab_size - 1} (vocab_size {vocab_size}) or be {IGNORED} "
            f"(not counted), got {int(values[place])} at {place}"
        )


def check_dropout_key(shape: Sequence[int], dtype: str, cached: bool) -> None:
    """A key of dropout: two words.

    Raises:
        ValueError: another shape or dtype, or together with a cache.
    """
    if cached:
        raise ValueError(
            "dropout_key cannot go together with past_key_values or use_cache: dropout is for "
            "training; decode without a key"
        )
    if dtype != "uint32" or tuple(shape) != (2,):
        raise ValueError(
            "dropout_key must be uint32 of shape (2,), as random.key makes it; got "
            f"{dtype} {tuple(shape)}"
        )


def check_logits_to_keep(logits_to_keep: Any, columns: int) -> int:
    """How many logits of each row's end are wanted: 0 (all columns) to S.

    Returns:
        A plain integer.

    Raises:
        ValueError: anything else.
    """
    if not is_whole(logits_to_keep) or not 0 <= logits_to_keep <= columns:
        raise ValueError(
            f"logits_to_keep must lie in 0..{columns} (the columns of input_ids; 0 keeps all), got "
            f"{logits_to_keep!r}"
        )
    return int(logits_to_keep)


def _refuse_empty_rows(name: str, lengths: NDArray[Any], has_cache: bool) -> None:
    empty = np.flatnonzero(lengths == 0)
    if empty.size and not has_cache:
        raise ValueError(
            f"{name} row {empty[0]} has no tokens: only a call with past_key_values may leave a "
            "row empty; drop the row"
        )


def is_whole(value: Any) -> bool:
    """Whether a value is one integer, of Python or numpy."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_integer(dtype: str) -> bool:
    """Whether a dtype of this name is one of integers."""
    return dtype.startswith(("int", "uint"))
