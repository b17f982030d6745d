"""Text as it comes, token by token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tokenizers

from diy_core.text.clean_up import CleanUpStream

_REPLACEMENT = "\ufffd"  # what bytes decode to that are no UTF-8, or not yet
_NEVER_IN_UTF8 = ("<0xFF>", "<0xFE>", "<0xFD>", "<0xFC>", "<0xC1>", "<0xC0>")


class TextStream:
    """Token ids in, text out, each piece as soon as its last byte is there.

    A character whose bytes are spread over tokens is held back until it is whole. The pieces, with
    that of `finish`, join to the text of all ids. (`tokenizers.decoders.DecodeStream` is the same
    idea without an end: what it still holds is lost.)

    Args:
        decode: ids to text, before `clean_up`.
        cleans_up: whether `clean_up` follows; pieces then come a word later.
        spoiler: an id that spoils the bytes before it, as `spoiler_of` finds it; None: none does.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        *,
        cleans_up: bool = False,
        spoiler: int | None = None,
    ) -> None:
        self._decode = decode
        self._spoiler = [] if spoiler is None else [spoiler]
        self._clean_up = CleanUpStream() if cleans_up else None
        self._context: list[int] = []  # printed already; some decoders look at the token before
        self._pending: list[int] = []  # not wholly printed
        self._printed = 0  # characters of the pending text that were printed

    def push(self, token_id: int) -> str:
        """The text that this id completes; often one word, sometimes nothing."""
        self._pending += flat_ids([token_id], "token_id")
        text = self._text(self._pending)
        # The bytes at the end may be the beginning of a character, or garbage: the next id tells.
        whole = text.rstrip(_REPLACEMENT)
        if self._spoiler:
            spoiled = self._text(self._pending + self._spoiler)
            pairs = zip(whole, spoiled, strict=False)
            whole = whole[: next((i for i, (a, b) in enumerate(pairs) if a != b), len(spoiled))]
        piece = whole[self._printed :]
        self._printed = max(self._printed, len(whole))
        if text and whole == text:
            self._context, self._pending, self._printed = self._pending, [], 0
        return piece if self._clean_up is None else self._clean_up.push(piece)

    def finish(self) -> str:
        """What is still held: bytes that never became a character, as U+FFFD."""
        piece = self._text(self._pending)[self._printed :]
        self._context, self._pending, self._printed = [], [], 0
        if self._clean_up is None:
            return piece
        return self._clean_up.push(piece) + self._clean_up.finish()

    def _text(self, pending: list[int]) -> str:
        before = self._decode(self._context)
        return self._decode(self._context + pending)[len(before) :]


def spoiler_of(backend: tokenizers.Tokenizer) -> int | None:
    """The id of a byte that is in no UTF-8, where a byte decides about those before it; or None.

    Byte-fallback decoders judge a run of bytes as a whole: one that is wrong makes all of them
    U+FFFD, those too that were text so far. What it would change is not certain yet.
    """
    if backend.decoder is None or b'"ByteFallback"' not in backend.decoder.__getstate__():
        return None
    ids = (backend.token_to_id(token) for token in _NEVER_IN_UTF8)
    return next((i for i in ids if i is not None), None)


def flat_ids(ids: Any, name: str) -> list[int]:
    """Ids out of a list, a numpy array or a tensor, as Python integers.

    Args:
        ids: one after the other.
        name: what errors call them.

    Raises:
        ValueError: an id that is negative or no integer.
    """
    array = np.asarray(ids if isinstance(ids, (Sequence, np.ndarray)) else list(ids))
    if array.size == 0:
        return []
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be a flat list of integers, got {ids!r}")
    if array.min() < 0 or array.max() > np.iinfo(np.int32).max:
        bad = int(array.min() if array.min() < 0 else array.max())
        raise ValueError(f"{name} holds {bad}, which is not a token id: they are 0 to 2**31 - 1")
    return [int(i) for i in array]
