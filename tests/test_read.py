"""The reading order in docs/read.md: what it points at exists in both twins, what it says is so."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import page_sessions

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "read.md"
# Of each title its section, without the number.
SECTIONS = dict(
    re.findall(r"^## \d+\. (\w+)\n(.*?)(?=^## )", PAGE.read_text(), re.DOTALL | re.MULTILINE)
)
ORDER = ["Norm", "Rope", "Attention", "Cache", "Feedforward", "Model", "Loss", "Step", "Generate"]
_POINTER = re.compile(
    r"((?:`\w+`(?:, | and )?)+)\s+in\s+((?:\[[\w/]+\.py\]\([^)]+\)(?:\s+and\s+)?)+)"
)


def pointers(section: str) -> Iterator[tuple[str, str]]:
    """Each `name` that a section says to read, with each file that it says to read it in."""
    for names, files in _POINTER.findall(section):
        for file in re.findall(r"\[([\w/.]+)\]", files):
            yield from ((name, file) for name in re.findall(r"`(\w+)`", names))


def defined(file: str) -> set[str]:
    """The classes and functions of a module."""
    kinds = (ast.ClassDef, ast.FunctionDef)
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, kinds)}


def test_the_order_is_that_of_building_the_model() -> None:
    assert list(SECTIONS) == ORDER


@pytest.mark.parametrize("title", ORDER)
def test_a_step_has_its_formula_its_two_files_and_something_to_try(title: str) -> None:
    section = SECTIONS[title]
    assert re.match(r"\n    \S", section), "a formula comes first"
    assert "**Easy to get wrong:**" in section
    assert "**Try it.**" in section
    assert "```pycon\n>>> " in section
    found = list(pointers(section))
    assert {file for _, file in found} >= {
        f"{twin}/{title.lower()}.py" for twin in ("diy_torch", "diy_jax")
    }
    of_torch, of_jax = (
        [(name, file.removeprefix(twin)) for name, file in found if file.startswith(twin)]
        for twin in ("diy_torch", "diy_jax")
    )
    assert of_torch == [pair for pair in of_jax if pair[1] != "/linear.py"]
    for name, file in found:
        assert name in defined(file), f"{file} has no {name}"


def test_no_name_that_it_says_to_read_was_passed_over_above() -> None:
    for section in SECTIONS.values():
        said = "".join(re.findall(r"Read (.*?)\.\s", section, re.DOTALL))
        assert set(re.findall(r"`(\w+)`", said)) <= {name for name, _ in pointers(section)}


def test_what_it_says_to_try_gives_what_it_says() -> None:
    assert page_sessions.run(PAGE) >= 40
