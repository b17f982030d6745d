"""`make docs` describes every public name, and its pages are found and lead somewhere."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = ["diy_core", "diy_torch", "diy_jax", "parity"]
_DIRECTIVE = re.compile(r"^\.\. (?:auto(\w+)|py:(data)):: ([\w.]+)$", re.MULTILINE)


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_pages", DOCS / "api_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


api_pages = _load()


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return api_pages.pages()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_of_a_package_is_on_its_page(package: str, pages: dict[str, str]) -> None:
    page = pages[f"{package}.rst"]
    described = {name for _, _, name in _DIRECTIVE.findall(page)}
    elsewhere = dict(re.findall(r"^\* ``([\w.]+)`` is :py:obj:`([\w.]+)`\.$", page, re.MULTILINE))
    public = importlib.import_module(package).__all__
    assert {f"{package}.{name}" for name in public} == (described - {package}) | elsewhere.keys()
    everywhere = {name for text in pages.values() for _, _, name in _DIRECTIVE.findall(text)}
    assert set(elsewhere.values()) <= everywhere
    for name, home in elsewhere.items():
        assert _named(name) is _named(home)


def _named(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def test_what_is_described_is_described_once_and_has_a_docstring(pages: dict[str, str]) -> None:
    found = [match for text in pages.values() for match in _DIRECTIVE.findall(text)]
    assert len({name for *_, name in found}) == len(found) > 50
    for kind, data, path in found:
        value = importlib.import_module(path) if kind == "module" else _named(path)
        assert data or inspect.getdoc(value), path
        if inspect.isclass(value):
            assert vars(value).get("__doc__"), f"{path} has the docstring of another class"


def test_every_page_stands_in_the_index(pages: dict[str, str]) -> None:
    index = (DOCS / "index.md").read_text()
    listed = re.findall(r"^[\w./]+$", index, re.MULTILINE)
    written = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    derived = {page for page in pages if not page.startswith("source/")}
    assert sorted(listed) == sorted(
        written | {f"generated/{page.rpartition('.')[0]}" for page in derived}
    )


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page: Path, pages: dict[str, str]) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert (DOCS / link).exists(), link
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", api_pages.linked(text)):
        inside = link.removeprefix("generated/")
        assert inside in pages if inside != link else ".." not in link, link


def test_links_of_pages_from_the_root_lead_somewhere(pages: dict[str, str]) -> None:
    for name in ("contributing.md", "changelog.md"):
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", pages[name]):
            assert (DOCS / "generated" / link).resolve().is_file() or link in pages, link


def test_a_source_is_shown_from_the_file_itself(pages: dict[str, str]) -> None:
    shown = {path: text for path, text in pages.items() if path.startswith("source/")}
    assert "source/diy_torch/norm.py.rst" in shown
    for path, text in shown.items():
        (file,) = re.findall(r"literalinclude:: (\S+)", text)
        place = (DOCS / "generated" / path).parent / file
        assert place.resolve() == ROOT / path.removeprefix("source/").removesuffix(".rst")
        assert place.resolve().is_file()


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("One `x`.", "One ``x``."),
        ("One:\n\n    a = `b`\n\nTwo `c`.", "One:\n\n::\n\n    a = `b`\n\nTwo ``c``."),
        ("A.\n\n    b\n\n    c\n", "A.\n\n::\n\n    b\n\n    c\n"),
        ("A.\n\nArgs:\n    b: `c`.\n\n    d: e.", "A.\n\nArgs:\n    b: ``c``.\n\n    d: e."),
        (
            "A.\n\nReturns:\n    Two: b\n    and c: d.",
            "A.\n\nReturns:\n    : Two: b\n    and c: d.",
        ),
        ("``a`` and `{'b': c}`", "``a`` and ``{'b': c}``"),
    ],
)
def test_docstrings_become_restructured_text(docstring: str, expected: str) -> None:
    assert api_pages.as_restructured_text(docstring.split("\n")) == expected.split("\n")


def test_warnings_are_errors_and_what_is_built_is_no_news_to_git() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (command,) = re.findall(r"sphinx-build (.*?[^\\])\n", makefile, re.DOTALL)
    assert "--fail-on-warning" in command
    assert command.split()[-2:] == ["docs", "build/docs"]
    assert {"/docs/generated/", "build/"} <= set((ROOT / ".gitignore").read_text().split())
