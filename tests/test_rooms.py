"""Imports run one way inside a package, too: no circle of modules, nor of the rooms they stand in.

Every import counts, those inside functions and those for type checkers as well.
"""

from __future__ import annotations

import ast
import graphlib
import itertools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("diy_core", "diy_torch", "diy_jax", "parity")
Graph = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    files = itertools.chain.from_iterable((root / name).rglob("*.py") for name in PACKAGES)
    named = {".".join(file.relative_to(root).with_suffix("").parts): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in named.items()}


def imports(root: Path) -> Graph:
    """The modules of this project that each of them imports."""
    found: Graph = {}
    files = modules(root)
    for name, file in files.items():
        wanted = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                wanted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                wanted |= {one if one in files else str(node.module) for one in inside}
        found[name] = wanted & set(files) - {name}
    return found


def in_folder(graph: Graph, folder: str) -> Graph:
    """What stands in a folder, a module or a room each, and what of it they import."""

    def member(name: str) -> str | None:
        if name == folder:
            return f"{folder}.__init__"
        inside = name.removeprefix(f"{folder}.")
        return None if inside == name else f"{folder}.{inside.split('.')[0]}"

    found: Graph = {}
    for name, wanted in graph.items():
        if one := member(name):
            found.setdefault(one, set()).update(filter(None, map(member, wanted)))
    return {one: others - {one} for one, others in found.items()}


def circle(graph: Graph) -> list[str]:
    """The members of one circle, each importing the next, or none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def test_no_imports_go_in_a_circle() -> None:
    graph = imports(ROOT)
    assert circle(graph) == []
    for folder in sorted({name.rpartition(".")[0] for name in graph} - {""}):
        assert circle(in_folder(graph, folder)) == [], f"in {folder}"


@pytest.mark.parametrize(
    ("above", "below"),
    [
        ("parity.diagnosis", "parity.tracing"),
        ("parity.check", "parity.tracing"),
        ("parity.commands", "parity.check"),
        ("parity.commands", "parity.convert"),
        ("parity.faults", "parity.tracing"),
        ("parity.report", "parity.check"),
        ("diy_core.commands", "diy_core.training"),
        ("diy_core.training", "diy_core.data"),
        ("diy_core.data", "diy_core.checkpoints"),
        ("diy_core.checkpoints", "diy_core.text"),
        ("diy_core.text", "diy_core.system"),
    ],
)
def test_a_room_knows_nothing_of_those_above_it(above: str, below: str) -> None:
    graph = imports(ROOT)
    assert any(name.startswith(f"{above}.") for name in graph)
    lower = {name: wanted for name, wanted in graph.items() if name.startswith(f"{below}.")}
    assert lower
    wrong = {name: {one for one in wanted if f"{one}.".startswith(f"{above}.")}
             for name, wanted in lower.items()}  # fmt: skip
    assert not {name: found for name, found in wrong.items() if found}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.py": "from diy_core import b", "b.py": "import diy_core.a"}, {"a", "b"}),
        ({"a.py": "def f():\n    from diy_core.b import x", "b.py": "from diy_core import a"},
         {"a", "b"}),
        ({"one/a.py": "import diy_core.two.b", "two/b.py": "", "two/c.py": "import diy_core.one.a"},
         {"one", "two"}),
        ({"one/a.py": "import diy_core.b", "b.py": "", "c.py": "import diy_core.one.a"}, set()),
    ],
    ids=["modules", "inside a function", "rooms", "none"],
)  # fmt: skip
def test_a_circle_is_found(files: dict[str, str], expected: set[str], tmp_path: Path) -> None:
    for name, text in files.items():
        file = tmp_path / "diy_core" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    graph = imports(tmp_path)
    found = circle(graph) or circle(in_folder(graph, "diy_core"))
    assert {name.removeprefix("diy_core.") for name in found} == expected
