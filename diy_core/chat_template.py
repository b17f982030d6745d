"""A chat template filled in as `transformers` fills it in, without transformers.

A template is a Jinja program that came with a checkpoint: it runs in Jinja's sandbox.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from diy_core.chat_continuation import cut, mark
from diy_core.chat_messages import plain, plain_documents, plain_messages, plain_tools
from diy_core.chat_parts import refuse_unread_parts


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    where: str,
    *,
    continue_final_message: bool | str = False,
    functions: Mapping[str, Any] | None = None,
) -> str:
    """The conversation as the template writes it.

    Args:
        template: Jinja source.
        messages: `{"role": "user", "content": "..."}` and so on, oldest first.
        variables: further names for the template (`tools`, `add_generation_prompt`, ...).
        where: what error messages call the template.
        continue_final_message: end where the last message's content does, or the key that is named.
        functions: further names that are not plain data.

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
    names |= functions or {}

    def write(conversation: list[dict[str, Any]]) -> str:
        return _filled_in(template, {**names, "messages": conversation}, where)

    if not all(isinstance(message.get("content", ""), str) for message in given):
        refuse_unread_parts(write, given, where)
    if continue_final_message:
        key = continue_final_message if isinstance(continue_final_message, str) else "content"
        marked, last = mark(given, key, template, where)
        return cut(write(marked), last, where)
    return write(given)


def _filled_in(template: str, names: Mapping[str, Any], where: str) -> str:
    try:
        return _compiled(template).render(names)
    except TemplateError as error:  # of the syntax, or what the template itself raises
        line = f", line {lineno}" if (lineno := getattr(error, "lineno", None)) else ""
        raise ValueError(f"{where}{line}: {error}") from error
    except Exception as error:  # what running the template's expressions can raise is anything
        raise ValueError(f"{where} failed: {type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=16)
def undeclared_names(template: str) -> frozenset[str]:
    """The names that a template reads and does not set itself: what it can be given.

    Raises:
        ValueError: a template that cannot be parsed.
    """
    try:
        return frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(template)))
    except TemplateError as error:
        raise ValueError(f"chat template: {error}") from error


@functools.lru_cache(maxsize=16)
def keys_read(template: str) -> frozenset[str]:
    """The keys that a template looks for, in messages or elsewhere, as `m.key` or `m["key"]`.

    Raises:
        ValueError: a template that cannot be parsed.
    """
    try:
        tree = _ENVIRONMENT.parse(template)
    except TemplateError as error:
        raise ValueError(f"chat template: {error}") from error
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    constants = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return frozenset(attributes | constants)


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    return _ENVIRONMENT.from_string(template)


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks answers for training; it prints its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _Dict:
    """`dict` in a template: it makes dictionaries, and has no attributes to climb on."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` in a template, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no name with an underscore in front, got {name!r}")


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
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


_ENVIRONMENT = _environment()
