"""Jinja as transformers sets it up, so that a template means the same in both.

A template is a Jinja program that came with a checkpoint: it runs in Jinja's sandbox, and the whole
file in a process with limits (`system/confined.py`), without this package around it.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


def write(template: str, names: Mapping[str, Any], marks: Mapping[str, tuple[str, str]]) -> str:
    """The template filled in.

    Args:
        template: Jinja source.
        names: plain data.
        marks: functions for `{% call NAME() %}...{% endcall %}` that put two texts around it.
    """
    return _compiled(template).render({**names, **{n: _marker(*m) for n, m in marks.items()}})


def undeclared_names(template: str) -> list[str]:
    """The names that a template reads and does not set itself: what it can be given."""
    return sorted(meta.find_undeclared_variables(_ENVIRONMENT.parse(template)))


def keys_read(template: str) -> list[str]:
    """The keys that a template looks for, in messages or elsewhere, as `m.key` or `m["key"]`."""
    tree = _ENVIRONMENT.parse(template)
    attributes = {node.attr for node in tree.find_all(nodes.Getattr)}
    constants = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    return sorted(attributes | constants)


def _marker(before: str, after: str) -> Callable[[Callable[[], str]], str]:
    def around(caller: Callable[[], str]) -> str:
        return f"{before}{caller()}{after}"

    return around


@functools.lru_cache(maxsize=4)  # one may take a hundred megabytes
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
