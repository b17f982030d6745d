"""Files from outside are opened in one place, so that the next reader does it right, too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("diy_core", "diy_torch", "diy_jax", "parity")
# Calls that open a file by its name for reading, or have somebody else do it.
READING = {
    *("open", "read_text", "read_bytes", "fromfile", "memmap", "loadtxt", "load_file"),
    *("copyfile", "copy", "copy2", "copytree", "from_file", "safe_open", "ParquetFile"),
}
MODULES = {"shutil", "np", "numpy", "os", "io", "tokenizers", "safetensors"}
# Where files are opened otherwise, and why.
ALLOWED = {
    "diy_core/system": "the one place, and what owns directories by their descriptors",
    "diy_core/data/parts.py: os.open": "the lock of a directory of its own",
    "diy_core/data/walking.py: os.open": "a folder, to list it",
    "diy_core/data/table_server.py: pyarrow.parquet.ParquetFile": "handed to it, open",
    "diy_core/data/table_server.py: _STATISTICS.read_text": "what the system says of the process",
    "diy_core/system/standard_error.py: os.open": "the null device",
    "diy_core/training/run/lock.py: os.open": "the lock of a run",
    "parity/report/page.py: (folder / name).read_text": "templates of the package",
}


def calls(file: Path) -> Iterator[str]:
    """The calls in a module that may open a file for reading, as they are written."""
    names = imported_from_outside(file)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        last = called.rpartition(".")[2]
        owner = called.removesuffix(f".{last}") if "." in called else ""
        if last == "load" and owner in ("np", "numpy"):
            yield called
        elif last not in READING or (not owner and last in names):
            continue
        elif last in ("copy", "from_file") and owner not in MODULES | {"tokenizers.Tokenizer"}:
            continue  # of a dict, an array, ...
        elif last == "open" and not is_reading(node, owner):
            continue
        else:
            yield called


def imported_from_outside(file: Path) -> set[str]:
    """What a module takes from `diy_core.system.outside`, or defines under such a name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diy_core"):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


def is_reading(call: ast.Call, owner: str) -> bool:
    """True for an `open` of a file that may exist; the other `open`s here are of checkpoints."""
    if not owner or owner in MODULES:
        return True
    modes = [str(value.value) for value in call.args if isinstance(value, ast.Constant)]
    return not (call.args or call.keywords) or any(set(mode) <= set("rbta+") for mode in modes)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_opens_a_file_by_itself(package: str) -> None:
    found = set()
    for file in sorted((ROOT / package).rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        if path.startswith("diy_core/system/"):
            continue
        found |= {f"{path}: {call}" for call in calls(file)}
    assert found - set(ALLOWED) == set(), "use diy_core.system.outside"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_takes_links_out_of_a_path_by_a_way_that_fails_in_circles(package: str) -> None:
    """`Path.resolve` raises a RuntimeError there, until Python 3.13."""
    found = {
        f"{file.relative_to(ROOT).as_posix()}: {ast.unparse(node)}"
        for file in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".resolve")
    }
    assert found == set(), "use diy_core.system.held.real"


def test_nothing_is_allowed_that_is_not_done() -> None:
    done = {
        f"{file.relative_to(ROOT).as_posix()}: {call}"
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for call in calls(file)
    }
    assert {entry for entry in ALLOWED if ":" in entry} <= done


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("open(path)", ["open"]),
        ("path.open('rb')", ["path.open"]),
        ("path.open()", ["path.open"]),
        ("path.open('xb')", []),
        ("path.open('wb')", []),
        ("(path / name).read_text()", ["(path / name).read_text"]),
        ("np.memmap(path)", ["np.memmap"]),
        ("np.load(path)", ["np.load"]),
        ("values.copy()", []),
        ("shutil.copy(a, b)", ["shutil.copy"]),
        ("from diy_core.system.outside import read_text\nread_text(path)", []),
        ("Checkpoint.open(path, config)", []),
    ],
)
def test_what_counts_as_opening(tmp_path: Path, code: str, expected: list[str]) -> None:
    (tmp_path / "x.py").write_text(code)
    assert list(calls(tmp_path / "x.py")) == expected
