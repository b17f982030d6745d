"""What a chat template is given: messages, tools and documents, checked and made plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Names under which a message's reasoning is passed; templates read the first, or gpt-oss' second.
REASONING = ("reasoning_content", "thinking", "reasoning")
_TOOL_ROLES = ("tool", "ipython", "function")  # what a tool returned may be any JSON


def plain_messages(messages: Any) -> list[dict[str, Any]]:
    """The messages as transformers hands them to a template, in copies.

    Keys without a value go, and reasoning stands under each of its names.

    Raises:
        ValueError: malformed messages.
    """
    _check(messages)
    given = [{k: v for k, v in message.items() if v is not None} for message in messages]
    return [_with_reasoning(plain(message, f"message {i}")) for i, message in enumerate(given)]


def plain_tools(tools: Any) -> list[Any] | None:
    """Tool definitions as plain data; None stays None.

    Raises:
        ValueError: no list of objects.
    """
    if tools is None:
        return None
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Sequence):
        raise ValueError(f"tools must be a list of JSON schemas, got {type(tools).__name__}")
    for i, tool in enumerate(tools):
        if callable(tool) and not isinstance(tool, Mapping):
            name = getattr(tool, "__name__", type(tool).__name__)
            raise ValueError(
                f"tool {i} is the function {name}: give its JSON schema, such as "
                f"transformers.utils.get_json_schema({name}) makes it"
            )
        if not isinstance(tool, Mapping):
            raise ValueError(f"tool {i} must be an object (a JSON schema), got {tool!r}")
    return [plain(tool, f"tool {i}") for i, tool in enumerate(tools)]


def plain_documents(documents: Any) -> list[Any] | None:
    """Documents to answer from, as plain data; None stays None.

    Raises:
        ValueError: no list of objects.
    """
    if documents is None:
        return None
    listed = isinstance(documents, Sequence) and not isinstance(documents, (str, bytes))
    if not listed or not all(isinstance(document, Mapping) for document in documents):
        raise ValueError(
            'documents must be a list of objects such as {"title": "...", "text": "..."}, '
            f"got {documents!r}"
        )
    return [plain(document, f"document {i}") for i, document in enumerate(documents)]


def plain(value: Any, name: str) -> Any:
    """Plain JSON data, in copies: a template never sees a live object with methods to call.

    Args:
        value: built of mappings, sequences, texts, numbers, True, False and None.
        name: of the value, for the error.

    Raises:
        ValueError: anything else in it.
    """
    if value is None or type(value) in (bool, str, int, float):
        return value
    if isinstance(value, np.generic):  # before float, of which float64 is one
        return plain(value.item(), name)
    if isinstance(value, str):  # of a subclass, without its methods
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return {plain(key, name): plain(item, name) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(plain(item, name) for item in value)
    if isinstance(value, list):
        return [plain(item, name) for item in value]
    raise ValueError(f"{name} holds {type(value).__name__}, which is not JSON serializable")


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    found = next((message[key] for key in REASONING if key in message), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


def _check(messages: Any) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise ValueError(
            'messages must be a list such as [{"role": "user", "content": "Hello"}], '
            f"got {type(messages).__name__}"
        )
    if not messages:
        raise ValueError("messages is empty: a chat needs at least one message")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(
                f"message {i} must be an object with role and content, got {message!r}"
            )
        if not isinstance(message.get("role"), str):
            found = repr(message["role"]) if "role" in message else "none"
            raise ValueError(f"message {i} needs role as a string, got {found}")
        _check_content(i, message)


def _check_content(i: int, message: Mapping[str, Any]) -> None:
    content = message.get("content")
    if isinstance(content, str) or (content is not None and message["role"] in _TOOL_ROLES):
        return
    # A message that calls tools has no content of its own.
    if content is None and (message.get("tool_calls") or message.get("function_call")):
        return
    if isinstance(content, (list, tuple)) and content:
        if all(isinstance(part, Mapping) for part in content):
            return
        raise ValueError(
            f"message {i} needs content as a string, got {content!r}: a list must hold parts such "
            'as {"type": "text", "text": "..."}'
        )
    found = repr(message["content"]) if "content" in message else "none"
    raise ValueError(f"message {i} needs content as a string, got {found}")
