"""Libraries look at what came from outside inside of `translated`.

So no error of theirs is a traceback. A call is found by what its module imports, or by the object
that it is called on; it may stand in a function that is called inside of such a guard alone.
"""

from __future__ import annotations

import ast
import functools
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("diy_core", "diy_torch", "diy_jax", "parity")
LIBRARIES = {
    *("tokenizers", "orbax", "tensorstore", "pyarrow", "gguf", "backports", "safetensors"),
    *("jinja2", "yaml"),
}
GUARDS = {"translated", "as_unreadable"}
# What objects of these libraries are called here: calls of their methods are calls of the library.
_WORDS = ("backend", "normalizer", "pre_tokenizer", "decoder", "_table")
OBJECTS = re.compile(rf"(^|[._])({'|'.join(_WORDS)})$")
METHODS = {"iter_batches", "to_pylist", "decompress"}
# These ask for what was read before, and raise nothing.
HARMLESS = {"token_to_id", "get_vocab_size", "no_truncation", "no_padding"}
# Calls that stand elsewhere, and why: `file: call`, or a file.
ALLOWED = {
    "diy_core/text/byte_tokenizer.py": "of constants",
    "diy_core/checkpoints/gguf/rules.py": "of constants",
    "diy_core/text/rebuilt.py": "of constants, and through a table, in `text.backend.load`",
    "diy_core/text/chat/environment.py": "in a process of its own, which answers with any error",
    "diy_core/text/trial_run.py": "the same",
    "diy_core/data/table_server.py": "the same",
    "diy_core/checkpoints/gguf/config.py: gguf.dequantize": "in `GGUFReader`; it is of its bytes",
    "diy_core/checkpoints/gguf/writer.py: gguf.GGUFWriter": "of a path of its own",
    "diy_core/training/run/directory.py: yaml.safe_dump": "of a config that was read",
    "parity/convert/switch.py: yaml.safe_dump": "the same",
    "diy_jax/orbax_files.py: ocp.Context": "settings of its own",
    **dict.fromkeys(
        (
            f"diy_jax/{file}.py: ocp.partial.{call}"
            for file in ("orbax_files", "orbax_store")
            for call in ("save", "finalize")
        ),
        "writes arrays of its own; errors are those of the disk",
    ),
    "parity/report/page.py": "templates of the package",
}


class Module:
    """A file, parsed when it is looked at."""

    def __init__(self, path: str, text: str) -> None:
        self.path, self.text = path, text

    @functools.cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    @functools.cached_property
    def around(self) -> dict[ast.AST, ast.AST]:
        return {child: node for node in self.nodes for child in ast.iter_child_nodes(node)}

    @functools.cached_property
    def loaded(self) -> dict[str, list[ast.AST]]:
        """The names and attributes that are read, each with its nodes."""
        found = defaultdict(list)
        for node in self.nodes:
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load):
                found[node.id if isinstance(node, ast.Name) else node.attr].append(node)
        return found

    def _imported(self) -> Iterator[str]:
        """The names that stand for one of the libraries, or for a part of it."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    if _is_library(alias.name):
                        yield (alias.asname or alias.name).partition(".")[0]
            elif isinstance(node, ast.ImportFrom) and _is_library(node.module or ""):
                yield from (alias.asname or alias.name for alias in node.names)

    def outwards(self, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        """Each node around a node, with the one inside of it."""
        while node in self.around:
            yield self.around[node], node
            node = self.around[node]

    def calls(self) -> Iterator[ast.Call]:
        """The calls into one of the libraries."""
        if not any(word in self.text for word in (*LIBRARIES, *METHODS, *_WORDS)):
            return
        imported = set(self._imported())
        for node in self.nodes:
            if isinstance(node, ast.Call):
                owner, _, last = _dotted(node.func).rpartition(".")
                first = (owner or last).partition(".")[0]
                of_object = OBJECTS.search(owner) and last not in HARMLESS
                if first in imported or last in METHODS or of_object:
                    yield node

    def stands_in_guard(self, node: ast.AST) -> bool:
        """Whether a node stands in the block of a guard, in its own function."""
        for outer, inner in self.outwards(node):
            if isinstance(outer, ast.FunctionDef):
                return False
            is_block = isinstance(outer, ast.With) and inner in outer.body
            if is_block and any(self._is_guard(i.context_expr, outer) for i in outer.items):
                return True
        return False

    def _is_guard(self, context: ast.AST, place: ast.With) -> bool:
        if not isinstance(context, ast.Name):
            return isinstance(context, ast.Call) and _dotted(context.func) in GUARDS
        function = self.function_of(place)  # it was made a line before
        return function is not None and any(
            isinstance(node, ast.Assign)
            and context.id in map(_dotted, node.targets)
            and self._is_guard(node.value, place)
            for node in ast.walk(function)
        )

    def function_of(self, node: ast.AST) -> ast.FunctionDef | None:
        """The function around a node."""
        found = (outer for outer, _ in self.outwards(node) if isinstance(outer, ast.FunctionDef))
        return next(found, None)

    def name_of(self, function: ast.FunctionDef) -> str:
        """What a function is called by; for `__init__` that is its class."""
        outer = self.around[function]
        is_class = function.name == "__init__" and isinstance(outer, ast.ClassDef)
        return self.key(outer.name if is_class else function.name)

    def key(self, name: str) -> str:
        """A name, with its module where it is of no other."""
        return f"{self.path}:{name}" if name.startswith("_") else name

    def is_only_a_type(self, node: ast.AST) -> bool:
        for outer, inner in self.outwards(node):
            if isinstance(outer, ast.arg | ast.AnnAssign):
                return inner is outer.annotation
            if isinstance(outer, ast.FunctionDef):
                return inner is outer.returns
        return False


class Guards:
    """Which nodes of some modules are reached through a guard alone."""

    def __init__(self, modules: list[Module]) -> None:
        self._modules = modules
        self._known: dict[str, bool] = {}

    def reach(self, module: Module, node: ast.AST) -> bool:
        """Whether a node stands inside of one, or its function is only called there."""
        if module.stands_in_guard(node):
            return True
        function = module.function_of(node)
        return function is not None and (
            self.reach(module, function) or self._reach_all_uses(module.name_of(function))
        )

    def forget_beliefs(self) -> int:
        """Forget which functions are called in guards alone, as some were believed so on the way.

        Returns:
            How many are known not to be.
        """
        self._known = {name: reached for name, reached in self._known.items() if not reached}
        return len(self._known)

    def _reach_all_uses(self, name: str) -> bool:
        if name not in self._known:
            self._known[name] = True  # a function that calls itself
            uses = [(m, node) for m, node in self._uses(name) if not m.is_only_a_type(node)]
            self._known[name] = bool(uses) and all(self.reach(*use) for use in uses)
        return self._known[name]

    def _uses(self, key: str) -> Iterator[tuple[Module, ast.AST]]:
        path, _, name = key.rpartition(":")
        for module in self._modules:
            if name in module.text and path in ("", module.path):
                yield from ((module, node) for node in module.loaded[name])


def _is_library(module: str) -> bool:
    return module.partition(".")[0] in LIBRARIES


def _dotted(node: ast.AST) -> str:
    """Such as `self.backend.encode`; what else stands in it is a question mark."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{_dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def unguarded(modules: list[Module]) -> set[str]:
    """Calls outside of every guard, as `file: call`."""
    guards, before = Guards(modules), -1
    while before != (before := guards.forget_beliefs()):
        left = {
            f"{module.path}: {_dotted(call.func)}"
            for module in modules
            for call in module.calls()
            if not guards.reach(module, call)
        }
    return left


@functools.cache
def found() -> set[str]:
    return unguarded(
        [
            Module(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
            for package in PACKAGES
            for file in sorted((ROOT / package).rglob("*.py"))
        ]
    )


def test_no_library_looks_at_files_outside_of_a_guard() -> None:
    left = {call for call in found() if not {call, call.partition(":")[0]} & ALLOWED.keys()}
    assert left == set(), "use diy_core.system.translated"


def test_nothing_is_allowed_that_is_not_done() -> None:
    done = found() | {call.partition(":")[0] for call in found()}
    assert ALLOWED.keys() <= done


_GUARDED = "import yaml\nwith translated(file, 'is odd'):\n    yaml.compose(text)"
_INSIDE = "import yaml\ndef _inner():\n    yaml.compose(text)\ndef outer():\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import yaml\nyaml.compose(text)", {"x.py: yaml.compose"}),
        (_GUARDED, set()),
        ("import yaml\nfor i in x:\n    yaml.compose(i)\nelse:\n    f()", {"x.py: yaml.compose"}),
        ("from orbax.checkpoint import v1 as ocp\nocp.load(path)", {"x.py: ocp.load"}),
        ("from tokenizers.models import BPE\nBPE(vocab)", {"x.py: BPE"}),
        ("self.backend.encode(text)", {"x.py: self.backend.encode"}),
        ("self.backend.token_to_id(text)", set()),
        ("decoder.decompress(block)", {"x.py: decoder.decompress"}),
        (f"{_INSIDE}    with translated(f, 'x'):\n        _inner()", set()),
        (f"{_INSIDE}    with open(f):\n        _inner()", {"x.py: yaml.compose"}),
        (
            f"{_INSIDE}    with translated(f, 'x'):\n        _inner()\n    _inner()",
            {"x.py: yaml.compose"},
        ),
        (f"{_INSIDE}    g = translated(f, 'x')\n    with g:\n        _inner()", set()),
        (f"{_INSIDE}    g = open(f)\n    with g:\n        _inner()", {"x.py: yaml.compose"}),
        ("import json\njson.loads(text)", set()),
    ],
)
def test_what_counts_as_guarded(code: str, expected: set[str]) -> None:
    assert unguarded([Module("x.py", code)]) == expected
