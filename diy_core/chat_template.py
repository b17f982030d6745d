"""A chat template filled in as `transformers` fills it in, without transformers.

A template is a Jinja program that came with a checkpoint: it runs in Jinja's sandbox.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


def render(
    template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any], where: str
) -> str:
    """The conversation as the template writes it.

    Args:
        template: Jinja source.
        messages: `{"role": "user", "content": "..."}` and so on, oldest first.
        variables: further names for the template (`add_generation_prompt`, `bos_token`, ...).
        where: what error messages name.

    Raises:
        ValueError: malformed messages, or an error in or from the template.
    """
    _check_messages(messages)
    try:
        # The template sees plain JSON data, never a live object whose methods it could call.
        plain = json.loads(json.dumps([dict(message) for message in messages]))
        names = {"tools": None, "documents": None, **variables, "messages": plain}
        return _ENVIRONMENT.from_string(template).render(names)
    except TemplateError as error:  # of the syntax, or what the template itself raises
        line = f", line {lineno}" if (lineno := getattr(error, "lineno", None)) else ""
        raise ValueError(f"chat template of {where}{line}: {error}") from error
    except Exception as error:  # what running the template's expressions can raise is anything
        raise ValueError(
            f"chat template of {where} failed: {type(error).__name__}: {error}"
        ) from error


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks answers for training; it prints its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja as transformers sets it up, so that a template means the same in both."""

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes HTML, which no model was trained to read.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


_ENVIRONMENT = _environment()


def _check_messages(messages: Any) -> None:
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
        for key in ("role", "content"):
            # A message that calls tools has no content of its own.
            if key == "content" and message.get("tool_calls") and message.get(key) is None:
                continue
            if not isinstance(message.get(key), str):
                found = repr(message[key]) if key in message else "none"
                raise ValueError(f"message {i} needs {key} as a string, got {found}")
