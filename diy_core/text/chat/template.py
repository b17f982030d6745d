"""A chat template filled in as `transformers` fills it in, without transformers.

A template is a Jinja program that came with a checkpoint: it runs in Jinja's sandbox, in a process
that has limits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diy_core.system.confined import Confined, ConfinedError
from diy_core.system.limits import how_to_raise, limit
from diy_core.text.chat.continuation import cut, mark
from diy_core.text.chat.messages import plain, plain_documents, plain_messages, plain_tools
from diy_core.text.chat.parts import refuse_unread_parts


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    where: str,
    *,
    continue_final_message: bool | str = False,
    marks: Mapping[str, tuple[str, str]] | None = None,
) -> str:
    """The conversation as the template writes it.

    Args:
        template: Jinja source.
        messages: `{"role": "user", "content": "..."}` and so on, oldest first.
        variables: further names for the template (`tools`, `add_generation_prompt`, ...).
        where: what error messages call the template.
        continue_final_message: end where the last message's content does, or the key that is named.
        marks: further names, each a function that puts two texts around what it is called with.

    Raises:
        ValueError: malformed messages, or an error in or from the template.
    """
    try:
        given = plain_messages(messages)
        names = {"tools": None, "documents": None, **variables}
        names["tools"] = plain_tools(names["tools"])
        names["documents"] = plain_documents(names["documents"])
        names = {name: plain(value, name) for name, value in names.items()}
    except RecursionError as error:
        raise ValueError("the chat is nested too deeply to be written") from error

    def write(conversation: list[dict[str, Any]]) -> str:
        return _filled_in(template, {**names, "messages": conversation}, where, marks or {})

    if not all(isinstance(message.get("content", ""), str) for message in given):
        refuse_unread_parts(write, given, where)
    if continue_final_message:
        key = continue_final_message if isinstance(continue_final_message, str) else "content"
        marked, last = mark(given, key, template, where)
        return cut(write(marked), last, where)
    return write(given)


def _filled_in(
    template: str, names: Mapping[str, Any], where: str, marks: Mapping[str, tuple[str, str]]
) -> str:
    return str(_call(where, "write", template, names, marks))


@functools.lru_cache(maxsize=16)
def undeclared_names(template: str) -> frozenset[str]:
    """The names that a template reads and does not set itself: what it can be given.

    Raises:
        ValueError: a template that cannot be parsed.
    """
    return frozenset(_call("chat template", "undeclared_names", template))


@functools.lru_cache(maxsize=16)
def keys_read(template: str) -> frozenset[str]:
    """The keys that a template looks for, in messages or elsewhere, as `m.key` or `m["key"]`.

    Raises:
        ValueError: a template that cannot be parsed.
    """
    return frozenset(_call("chat template", "keys_read", template))


def _call(where: str, function: str, template: str, *arguments: Any) -> Any:
    if len(template) > (most := limit("template_characters")):
        how = how_to_raise("template_characters")
        raise ValueError(f"{where} has more than {most} characters: {how}")
    try:
        return _TEMPLATES.call(function, template, *arguments)
    except RecursionError as error:
        raise ValueError("the chat is nested too deeply to be written") from error
    except ConfinedError as error:
        line = f", line {error.line}" if error.line else ""
        if not error.kinds:
            raise ValueError(f"{where} {error}") from error
        if "TemplateError" in error.kinds:  # of the syntax, or what the template itself raises
            raise ValueError(f"{where}{line}: {error}") from error
        raise ValueError(f"{where} failed: {error.kinds[0]}: {error}") from error


_TEMPLATES = Confined(Path(__file__).with_name("environment.py"), "template")
