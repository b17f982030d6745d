"""Which pages the built documentation has beside those that are written: from `__all__`.

`make docs` writes them to docs/generated. Nothing here needs Sphinx.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# A page each, in this order. What is public in several of them is described in the first.
MODULES = (
    "diy_core",
    "diy_core.text.tokenizer",
    "diy_core.data",
    "diy_core.training.config",
    "diy_torch",
    "diy_jax",
    "parity",
    "parity.tracing.result",
)
# Pages that stand in the root of the repository.
FROM_ROOT = ("CONTRIBUTING", "CHANGELOG")
SOURCE = re.compile(r"\]\(\.\./([\w/]+\.py)\)")
_SECTIONS = {"Args:", "Attributes:", "Returns:", "Yields:", "Raises:"}
_CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def pages() -> dict[str, str]:
    """The text of each page by its path below docs/generated."""
    described: dict[int, str] = {}
    found = {}
    for name in MODULES:
        found[f"{name}.rst"] = _module_page(importlib.import_module(name), described)
    for path in sorted(_sources()):
        found[f"source/{path}.rst"] = _source_page(path)
    for name in FROM_ROOT:
        found[f"{name.lower()}.md"] = from_root((ROOT / f"{name}.md").read_text(encoding="utf-8"))
    return found


def public_names(module: ModuleType) -> list[str]:
    """`__all__`; without one, the public classes and functions that the module defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def linked(text: str) -> str:
    """A page of docs/ with its links out of docs/ turned to pages that are generated."""
    text = SOURCE.sub(r"](generated/source/\1.rst)", text)
    for name in FROM_ROOT:
        text = text.replace(f"](../{name}.md)", f"](generated/{name.lower()}.md)")
    return text


def from_root(text: str) -> str:
    """A page of the repository's root, with its links as they are from docs/generated."""
    return re.sub(r"\]\(docs/", "](../", text)


def as_restructured_text(docstring: list[str]) -> list[str]:
    """The lines of a docstring of ours, whose code is marked as in Markdown, for Sphinx."""
    marked: list[str] = []
    last, in_code = "", False  # the last line that was not empty, and whether it was code
    for line in docstring:
        is_indented = line.startswith("    ")
        begins_code = is_indented and marked[-1:] == [""] and not _heads(last)
        if begins_code and not in_code:
            marked += ["::", ""]
        if line.strip():
            in_code = is_indented and (in_code or begins_code)
        if not in_code:
            line = _CODE.sub(r"``\1``", line)
        if marked[-1:] == ["Returns:"]:
            # Sphinx takes what stands before a colon for a type; an empty one keeps the sentence.
            line = line.replace("    ", "    : ", 1)
        marked.append(line)
        last = line if line.strip() else last
    return marked


def _heads(line: str) -> bool:
    """Whether what is indented after a line is of its section, such as `Args:`."""
    return line.startswith("    ") or line in _SECTIONS


def _module_page(module: ModuleType, described: dict[int, str]) -> str:
    """A page with all public names of a module."""
    name = module.__name__
    parts = [_title(name), f".. automodule:: {name}\n   :no-members:\n"]
    elsewhere = []
    for public in sorted(public_names(module), key=str.lower):
        value = getattr(module, public)
        home = described.setdefault(id(value), f"{name}.{public}")
        if home == f"{name}.{public}":
            parts.append(_directive(home, value))
        else:
            elsewhere.append(f"* ``{name}.{public}`` is :py:obj:`{home}`.")
    return "\n".join([*parts, *elsewhere]) + "\n"


def _directive(name: str, value: Any) -> str:
    """What describes one public name."""
    if inspect.isclass(value):
        kind = "exception" if issubclass(value, BaseException) else "class"
        return f".. auto{kind}:: {name}\n   :members:\n   :special-members: __call__\n"
    if inspect.isroutine(value):
        return f".. autofunction:: {name}\n"
    return f".. py:data:: {name}\n   :value: {value!r}\n"


def _sources() -> Iterator[str]:
    """The source files that the written pages link to."""
    for page in (ROOT / "docs").glob("*.md"):
        yield from SOURCE.findall(page.read_text(encoding="utf-8"))


def _source_page(path: str) -> str:
    depth = "../" * (len(Path(path).parts) + 2)
    return f":orphan:\n\n{_title(path)}\n.. literalinclude:: {depth}{path}\n"


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"
