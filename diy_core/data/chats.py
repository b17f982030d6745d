"""A chat as token ids, and which of them the assistant said.

A template that marks answers with `{% generation %}`, as transformers knows it, is believed. For
any other, the conversation is written again up to the beginning and up to the end of each answer,
and the token streams are compared.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core import chat_template
from diy_core.tokenizer import Tokenizer

# Names that no template uses and characters that no text should hold; the result is checked.
_FUNCTION, _OPEN, _CLOSE = "_diy_answer", "\ue0f0", "\ue0f1"
_TAG = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


def encode_chat(
    tokenizer: Tokenizer, messages: list[dict[str, Any]]
) -> tuple[list[int], NDArray[np.uint8]]:
    """The ids of a whole conversation, and as many flags: 1 = the loss counts this token.

    Counted is what the model has to say itself: each answer up to the token that ends it. A token
    that reaches over the beginning of an answer is counted, one over its end is not.

    Raises:
        ValueError: no chat template, messages that it refuses, no answer in them, or answers that
            cannot be told from the rest.
    """
    text = tokenizer.chat(messages, add_generation_prompt=False)
    ids = tokenizer.encode(text, add_special_tokens=False)
    if _TAG.search(tokenizer.chat_template or ""):
        spans = _marked(tokenizer, messages, text)
    else:
        spans = _compared(tokenizer, messages, text)
    counted = np.zeros(len(ids), dtype=np.uint8)
    for start, stop in _token_spans(tokenizer, text, ids, spans):
        last = [i for i in range(start, stop) if ids[i] in tokenizer.eos_token_ids]
        counted[start : last[-1] + 1 if last else stop] = 1
    if not counted.any():
        raise ValueError(
            f"a chat of the roles {', '.join(m['role'] for m in messages)} holds no answer of the "
            "assistant: there is nothing to learn from it"
        )
    return ids, counted


def _marked(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], text: str
) -> list[tuple[int, int]]:
    """The answers by `{% generation %}`: each becomes a call that puts marks around its body."""

    def answer(caller: Callable[[], str]) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"

    # The tags are only renamed, so Jinja trims the white space around them as it did.
    source = _TAG.sub(
        lambda tag: tag[1] + ("endcall" if tag[2] else f"call {_FUNCTION}()") + tag[3],
        tokenizer.chat_template or "",
    )
    names = tokenizer.special_tokens | {"add_generation_prompt": False}
    functions = {_FUNCTION: answer}
    marked = chat_template.render(source, messages, names, "the chat template", functions=functions)
    spans, at = [], 0
    for i, piece in enumerate(re.split(f"[{_OPEN}{_CLOSE}]", marked)):
        if i % 2:
            spans.append((at, at + len(piece)))
        at += len(piece)
    if re.sub(f"[{_OPEN}{_CLOSE}]", "", marked) != text:
        raise ValueError("the chat holds U+E0F0 or U+E0F1, which mark answers here: remove them")
    return spans


def _compared(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], text: str
) -> list[tuple[int, int]]:
    """The answers as what the template writes for each, behind the prompt to answer."""
    spans = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if i == 0:
            raise ValueError(
                "the chat begins with the assistant: put a system or user message before it, or "
                "mark the answers in the chat template with {% generation %}"
            )
        prompt = tokenizer.chat(messages[:i], add_generation_prompt=True)
        answered = tokenizer.chat(messages[: i + 1], add_generation_prompt=False)
        if not (text.startswith(answered) and answered.startswith(prompt)):
            raise ValueError(
                f"the chat template does not write message {i} at the end as it writes it in the "
                "middle, so its answer cannot be told from the rest: mark the answers in the "
                "template with {% generation %}"
            )
        spans.append((len(prompt), len(answered)))
    return spans


def _token_spans(
    tokenizer: Tokenizer, text: str, ids: list[int], spans: list[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Characters to tokens: an answer begins where the tokens of the text before it end.

    Where a token reaches over the border, the two streams part before it.
    """

    def shared(stop: int) -> int:
        before = np.array(tokenizer.encode(text[:stop], add_special_tokens=False))
        length = min(len(before), len(ids))
        different = np.flatnonzero(before[:length] != np.array(ids[:length]))
        return int(different[0]) if different.size else length

    return [(shared(start), shared(stop)) for start, stop in spans]
