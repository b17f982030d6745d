"""A chat as token ids, and which of them the assistant said.

A template that marks answers with `{% generation %}`, as transformers knows it, is believed: all
that is marked is learnt. For any other, the conversation is written again up to the beginning and
up to the end of each answer, the token streams are compared, and the answer is learnt up to the
token that ends it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.data.marked_answers import Span, flags_of, marks_answers, spans_of
from diy_core.data.records import Chat
from diy_core.data.refusals import FIXED
from diy_core.text.chat import template as chat_template
from diy_core.text.chat.messages import REASONING
from diy_core.text.chat.template import keys_read, undeclared_names
from diy_core.text.chat.templates import choose
from diy_core.text.tokenizer import Tokenizer

_CALLS = ("tool_calls", "function_call")
# What an answer was made from, where a message holds it itself.
_GIVEN = ("tools", "functions", "documents", "images", "image", "videos", "audios", "audio")
_NOTHING: tuple[Any, ...] = (None, "", [], {})


class NothingToLearn(ValueError):
    """A document in which nothing counts."""


def encode_chat(
    tokenizer: Tokenizer, chat: Chat | list[dict[str, Any]]
) -> tuple[list[int], NDArray[np.uint8]]:
    """The ids of a whole conversation, and as many flags: 1 = the loss counts this token.

    Counted is what the model has to say itself: each answer, unless the chat says that it does not
    count. Where the template marks answers with `{% generation %}`, that is all that is marked,
    with the tokens that reach over its ends. Else it is each answer up to the token that ends it; a
    token that reaches over its beginning is counted, one over its end is not.

    Raises:
        ValueError: no chat template, messages that it refuses, something in the chat that it does
            not write, or answers that cannot be told from the rest.
        NothingToLearn: no answer that counts.
    """
    chat = chat if isinstance(chat, Chat) else Chat(chat)
    writer = _Writer(tokenizer, chat)
    text = writer.write(chat.messages)
    writer.refuse_what_is_unread(text)
    answers = [i for i, message in enumerate(chat.messages) if message["role"] == "assistant"]
    wanted = [i for i in answers if chat.counted is None or chat.counted[i]]
    if not wanted:
        roles = ", ".join(message["role"] for message in chat.messages)
        raise NothingToLearn(
            f"a chat of the roles {roles} holds no answer that counts: each has a weight of 0, or "
            "stands in the prompt"
            if answers
            else f"a chat of the roles {roles} holds no answer of the assistant"
        )
    ids = tokenizer.encode(text, add_special_tokens=False)
    if marks_answers(writer.source):
        counted = flags_of(tokenizer, text, _marked(writer, text, answers, wanted))
    else:
        counted = _up_to_ends(tokenizer, text, ids, _compared(writer, text, wanted))
    if not counted.any():
        raise NothingToLearn(
            f"a chat of the roles {', '.join(m['role'] for m in chat.messages)} holds no answer of "
            "the assistant"
        )
    writer.refuse_dropped_content(text)
    return ids, counted


def unread_keys(tokenizer: Tokenizer, chat: Chat, known: dict[tuple[str, str], bool]) -> list[str]:
    """The keys of a chat's messages that the chat template does not write.

    Args:
        tokenizer: with the template.
        chat: that `encode_chat` took.
        known: by role and key whether it is written; what is not in it is found out and added.

    Returns:
        `messages.KEY` for each, once.
    """
    found: set[str] = set()
    writer: _Writer | None = None
    for i, message in enumerate(chat.messages):
        for key in message.keys() - {"role", "content"}:
            if (place := (message["role"], key)) not in known and message[key] not in _NOTHING:
                writer = writer or _Writer(tokenizer, chat)
                known[place] = writer.write_without(i, key) != writer.write(chat.messages)
            if not known.get(place, True):
                found.add(f"messages.{key}")
    return sorted(found)


class _Writer:
    """A chat template with all that a chat gives it but messages.

    Raises:
        ValueError: no template, or one that does not read what the chat gives it.
    """

    def __init__(self, tokenizer: Tokenizer, chat: Chat) -> None:
        self.chat, self._tokenizer = chat, tokenizer
        self.source, name = choose(
            tokenizer.chat_templates, None, chat.tools is not None, "the tokenizer"
        )
        self._options: dict[str, Any] = dict(chat.variables)
        for key, value in (("tools", chat.tools), ("documents", chat.documents)):
            if key in self._options:
                raise ValueError(f"chat_template_kwargs holds {key}: it is a column of its own")
            if value is not None:
                self._options[key] = value
        if refused := FIXED & set(self._options):
            raise ValueError(f"chat_template_kwargs holds {min(refused)}, which cannot vary here")
        if unread := [key for key in self._options if key not in undeclared_names(self.source)]:
            raise ValueError(
                f"{name} does not read {unread[0]}, which the chat comes with: train with a "
                "template that does, or leave it out"
            )

    def write(self, messages: list[dict[str, Any]], add_generation_prompt: bool = False) -> str:
        return self._tokenizer.chat(messages, add_generation_prompt, **self._options)

    def write_marked(self, source: str, marks: dict[str, tuple[str, str]]) -> str:
        names = self._tokenizer.special_tokens | {"add_generation_prompt": False} | self._options
        return chat_template.render(
            source, self.chat.messages, names, "the chat template", marks=marks
        )

    def refuse_what_is_unread(self, text: str) -> None:
        """An answer that is a call, of which the template writes nothing, would teach silence; one
        without its reasoning, to answer at once.
        """
        # One that reads it may leave that of earlier turns out, as it was meant to.
        unread = () if keys_read(self.source) & set(REASONING) else REASONING
        for i, message in enumerate(self.chat.messages):
            found = [key for key in unread if message.get(key)]
            if found and self.write_without(i, found[0]) == text:
                raise ValueError(
                    f"the chat template does not write {found[0]} of message {i}: train with a "
                    "template that does, or leave it out"
                )
            if _has_quoted_arguments(message, text):
                raise ValueError(
                    f"the chat template writes the arguments of a call in message {i} as a quoted "
                    "text, since they are one: give them as an object"
                )
            for key in (*_CALLS, *_GIVEN):
                if message.get(key) and self.write_without(i, key) == text:
                    remedy = "write the call as content" if key in _CALLS else "leave it out"
                    raise ValueError(
                        f"the chat template does not write {key} of message {i}: train with a "
                        f"template that does, or {remedy}"
                    )

    def refuse_dropped_content(self, text: str) -> None:
        """An answer without what it was an answer to would teach to guess.

        What the user says is proven by standing in the text, all else by a second writing.
        """
        for i, message in enumerate(self.chat.messages):
            role, content = message["role"], message.get("content")
            if role == "assistant" or not isinstance(content, str) or not content.strip():
                continue  # answers are proven by what counts
            if role == "user" and content.strip() in text:
                continue
            if self.write_without(i, "content") == text:
                raise ValueError(
                    f"the chat template does not write content of message {i} ({role}): train with "
                    "a template that does, or leave it out"
                )

    def write_without(self, i: int, key: str) -> str | None:
        """The chat without a key of one of its messages; None: the template needs it."""
        messages = [dict(message) for message in self.chat.messages]
        del messages[i][key]
        messages[i].setdefault("content", "")
        try:
            return self.write(messages)
        except ValueError:
            return None


def _has_quoted_arguments(message: dict[str, Any], text: str) -> bool:
    """OpenAI's arguments are JSON in a text, which most templates would make JSON of once more."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", call) if isinstance(call, dict) else {}
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if isinstance(arguments, str) and arguments.lstrip()[:1] == "{":
            forms = {json.dumps(arguments, ensure_ascii=ascii_) for ascii_ in (False, True)}
            if any(form in text for form in forms):
                return True
    return False


def _marked(writer: _Writer, text: str, answers: list[int], wanted: list[int]) -> list[Span]:
    """The answers that count, by `{% generation %}`."""
    spans = spans_of(writer.source, text, writer.write_marked)
    if wanted == answers:
        return spans
    if len(spans) != len(answers):
        raise ValueError(
            f"the chat template marks {len(spans)} answers in a chat that has {len(answers)}, so "
            "those that do not count cannot be told from the others"
        )
    return [span for i, span in zip(answers, spans, strict=True) if i in wanted]


def _compared(writer: _Writer, text: str, wanted: list[int]) -> list[Span]:
    """The answers as what the template writes for each, behind the prompt to answer."""
    spans, messages = [], writer.chat.messages
    for i in wanted:
        if i == 0:
            raise ValueError(
                "the chat begins with the assistant: put a system or user message before it, or "
                "mark the answers in the chat template with {% generation %}"
            )
        prompt = writer.write(messages[:i], add_generation_prompt=True)
        answered = writer.write(messages[: i + 1])
        if not (text.startswith(answered) and answered.startswith(prompt)):
            raise ValueError(
                f"the chat template does not write message {i} at the end as it writes it in the "
                "middle, so its answer cannot be told from the rest: mark the answers in the "
                "template with {% generation %}"
            )
        spans.append((len(prompt), len(answered)))
    return spans


def _up_to_ends(
    tokenizer: Tokenizer, text: str, ids: list[int], spans: list[Span]
) -> NDArray[np.uint8]:
    """The flags of answers, each up to the last token in it that ends a text."""
    counted = np.zeros(len(ids), dtype=np.uint8)
    for start, stop in _token_spans(tokenizer, text, ids, spans):
        last = [i for i in range(start, stop) if ids[i] in tokenizer.eos_token_ids]
        counted[start : last[-1] + 1 if last else stop] = 1
    return counted


def _token_spans(tokenizer: Tokenizer, text: str, ids: list[int], spans: list[Span]) -> list[Span]:
    """Characters to tokens: an answer begins where the tokens of the text before it end.

    Where a token reaches over the border, the two streams part before it.
    """

    def shared(stop: int) -> int:
        before = np.array(tokenizer.encode(text[:stop], add_special_tokens=False))
        length = min(len(before), len(ids))
        different = np.flatnonzero(before[:length] != np.array(ids[:length]))
        return int(different[0]) if different.size else length

    return [(shared(start), shared(stop)) for start, stop in spans]
