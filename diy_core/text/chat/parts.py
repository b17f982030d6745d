"""Content as a list of parts: `[{"type": "text", "text": "..."}, {"type": "image_url", ...}]`.

Many templates take strings alone. They print such a list as Python shows it, or pass over a part
that they do not know, both without a word. So the conversation is written again with each part
changed: where the text stays the same, the template does not read the part.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

Message = dict[str, Any]
Write = Callable[[list[Message]], str]


def refuse_unread_parts(write: Write, messages: list[Message], template_name: str) -> None:
    """Raise where the template does not write all of a content that is a list or an object.

    Args:
        write: the template.
        messages: plain data.
        template_name: for the error.

    Raises:
        ValueError: a content that is printed as Python shows it or that the template cannot take,
            a part that is dropped, or an error of the template.
    """
    text = _written(write, messages, template_name)
    for i, message in enumerate(messages):
        content = message.get("content")
        if not isinstance(content, (list, tuple, dict)):
            continue
        shown = str(content)  # which may be JSON as well, such as [1, 2]
        if content and shown in text and shown != json.dumps(content, ensure_ascii=False):
            remedy = "give it as one" if isinstance(content, dict) else "join its texts into one"
            raise ValueError(
                f"{template_name} takes only strings as content, and writes that of message {i} as "
                f"{shown[:60]}...: {remedy}"
            )
        if content and not _writes_other(write, _with_content(messages, i, type(content)()), text):
            if not _reads_strings(write, messages, i):
                continue  # it passes over the whole message
            raise ValueError(
                f"{template_name} does not write the content of message {i}, which is not a "
                "string: give it as one"
            )
        for j, part in enumerate(content):  # of an object these are its keys
            if isinstance(part, dict) and not _is_read(write, messages, text, (i, j)):
                kind = part.get("type", "without a type")
                raise ValueError(
                    f"{template_name} does not write part {j} of message {i} ({kind}): leave it "
                    "out, or write it as text"
                )


def _written(write: Write, messages: list[Message], template_name: str) -> str:
    try:
        return write(messages)
    except ValueError as error:
        joined = [
            {**m, "content": _joined(m["content"])} if "content" in m else m for m in messages
        ]
        if not _writes(write, joined):
            raise
        i = next(i for i, m in enumerate(messages) if not isinstance(m.get("content", ""), str))
        raise ValueError(
            f"{template_name} takes only strings as content, and that of message {i} is a "
            f"{type(messages[i]['content']).__name__}: give it as one ({error})"
        ) from error


def _joined(content: Any) -> str:
    """Any text in place of a content."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, (list, tuple)) else []
    return "".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))


def _writes(write: Write, messages: list[Message]) -> bool:
    try:
        write(messages)
    except ValueError:
        return False
    return True


def _is_read(write: Write, messages: list[Message], text: str, at: tuple[int, int]) -> bool:
    """Whether the text changes with the part."""
    part = messages[at[0]]["content"][at[1]]
    words = part.get("text")
    if isinstance(words, str):
        if not words.strip():
            return True
        others: list[list[Message]] = [[{**part, "text": f"{words}x"}]]
    else:
        others = [[], [{"type": "text", "text": ""}]]
    return all(_writes_other(write, _replaced(messages, at, new), text) for new in others)


def _writes_other(write: Write, messages: list[Message], text: str) -> bool:
    try:
        return write(messages) != text
    except ValueError:  # it looked at the part, and wants one
        return True


def _replaced(
    messages: Sequence[Message], at: tuple[int, int], new: list[Message]
) -> list[Message]:
    i, j = at
    content = messages[i]["content"]
    return _with_content(messages, i, [*content[:j], *new, *content[j + 1 :]])


def _reads_strings(write: Write, messages: list[Message], i: int) -> bool:
    """Whether the template would write the message if its content were a string."""
    try:
        return write(_with_content(messages, i, "x")) != write(_with_content(messages, i, "y"))
    except ValueError:
        return True


def _with_content(messages: Sequence[Message], i: int, content: Any) -> list[Message]:
    return [*messages[:i], {**messages[i], "content": content}, *messages[i + 1 :]]
