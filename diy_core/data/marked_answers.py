"""The answers that a chat template marks with `{% generation %}`, as characters and as tokens.

What stands between the marks is learnt, all of it: what the template's author left out, such as the
line break after an end token, stands outside of them. transformers and TRL read the marks this way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from diy_core.system.translated import translated
from diy_core.text.tokenizer import Tokenizer

Span = tuple[int, int]
# Names that no template uses and characters that no text should hold; the result is checked.
_FUNCTION, _OPEN, _CLOSE = "_diy_answer", "\ue0f0", "\ue0f1"
_MARK = re.compile(f"[{_OPEN}{_CLOSE}]")
_TAG = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_SPACE = "Ġ"  # as the pieces of a byte-level tokenizer write it


def marks_answers(template: str) -> bool:
    """Whether a chat template marks what the assistant says."""
    return _TAG.search(_COMMENT.sub("", template)) is not None


def spans_of(
    template: str, text: str, write: Callable[[str, dict[str, tuple[str, str]]], str]
) -> list[Span]:
    """What is marked, in characters, in the order of the text.

    Args:
        template: that marks answers.
        text: a chat as it writes it.
        write: another template for the same chat, with functions that put two texts around
            what they are called with.

    Raises:
        ValueError: the chat holds the characters that are put around answers here.
    """

    # The tags are only renamed, so Jinja trims the white space around them as it did.
    source = _TAG.sub(
        lambda tag: tag[1] + ("endcall" if tag[2] else f"call {_FUNCTION}()") + tag[3], template
    )
    marked = write(source, {_FUNCTION: (_OPEN, _CLOSE)})
    spans, at = [], 0
    for i, piece in enumerate(_MARK.split(marked)):
        if i % 2:
            spans.append((at, at + len(piece)))
        at += len(piece)
    if _MARK.sub("", marked) != text:
        raise ValueError("the chat holds U+E0F0 or U+E0F1, which mark answers here: remove them")
    return spans


def flags_of(tokenizer: Tokenizer, text: str, spans: Sequence[Span]) -> NDArray[np.uint8]:
    """1 for each token of a text that has a character of one of the spans in it, else 0."""
    with translated("tokenizer", "the tokenizer cannot encode this text", may_panic=True):
        encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    reach = np.array(_reach(text, encoding.tokens, encoding.offsets), np.int64).reshape(-1, 2)
    flags = np.zeros(len(reach), np.uint8)
    for start, stop in spans:
        if start < stop:
            flags[(reach[:, 0] < stop) & (reach[:, 1] > start)] = 1
    return flags


def _reach(text: str, tokens: Sequence[str], offsets: Sequence[Span]) -> list[Span]:
    """From where to where each token reaches; some tokenizers leave out the spaces it begins with.

    transformers finds no token at such a space, and then counts nothing, or all the rest.
    """
    found: list[Span] = []
    end = 0
    for token, (start, stop) in zip(tokens, offsets, strict=True):
        spaces = len(token) - len(token.lstrip(_SPACE))
        if spaces > 0 and end < start and not text[end:start].strip(" "):
            start -= min(spaces, start - end)
        found.append((start, stop))
        end = max(end, stop)
    return found
