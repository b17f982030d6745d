"""Docstrings of the public names say what each of their arguments is."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PACKAGES = ("diy_core", "diy_torch", "diy_jax", "parity")
_UNDER_ARGS = re.compile(
    r"(?m)^ *(?:Args|Attributes):\n(.*?)(?=^ *(?:Returns|Raises|Source)\b|\Z)", re.S
)


def public() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """The name of every public function, class and method, itself, and its docstring."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            found = getattr(module, name)
            if inspect.isfunction(found):
                yield f"{package}.{name}", found, inspect.getdoc(found) or ""
            elif inspect.isclass(found) and found.__module__.startswith(PACKAGES):
                yield f"{package}.{name}", found, inspect.getdoc(found) or ""
                for method, value in vars(found).items():
                    function = getattr(value, "__func__", value)
                    if not method.startswith("_") and inspect.isfunction(function):
                        doc = inspect.getdoc(function) or ""
                        yield f"{package}.{name}.{method}", function, doc


def arguments(found: Callable[..., Any]) -> list[str]:
    """What it is given, without what it is a method of; of an error nothing."""
    if inspect.isclass(found):
        if issubclass(found, (BaseException, tuple)):
            return []
        if dataclasses.is_dataclass(found):
            names = [field.name for field in dataclasses.fields(found) if field.init]
            return [name for name in names if name not in ("parent", "name")]  # of Flax
        found = found.__init__
    names = list(inspect.signature(inspect.unwrap(found)).parameters)
    return [name for name in names if name not in ("self", "cls", "args", "kwargs")]


CASES = {name: (found, doc) for name, found, doc in public()}


@pytest.mark.parametrize("name", CASES)
def test_each_argument_of_a_public_name_is_described(name: str) -> None:
    found, doc = CASES[name]
    assert doc
    if doc.startswith("See `"):  # of a method that another one describes
        return
    said = "".join(part for part in _UNDER_ARGS.findall(doc))
    missing = [one for one in arguments(found) if not re.search(rf"\b{one}\b", said or doc)]
    assert missing == []
