"""Files of an Orbax tree that would end the process: too large to be read as a whole."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diy_core.checkpoints.orbax.tree import require_regular_tree
from diy_core.errors import CheckpointError
from tests.odd_files import ODD_FILES, put_odd_file

HOLES = 1 << 43  # bytes, more than any memory


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("d/1f", "ocdbt.process_0/d/2e", "a/0.0", "a/.zarray", "_METADATA"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    return tmp_path


def test_its_files_are_listed(tree: Path) -> None:
    found = require_regular_tree(tree)
    assert sorted(found) == sorted(path for path in tree.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("_METADATA", "is longer than 2097152 bytes: if you trust the file, DIY_LIMITS=header_by"),
        ("a/.zarray", "is longer than 2097152 bytes"),
        ("a/0.0", f"has {HOLES} bytes, and this machine .* of memory: it is read as a whole"),
    ],
)
def test_what_is_read_as_a_whole_fits_in_memory(tree: Path, name: str, words: str) -> None:
    os.truncate(tree / name, HOLES)
    with pytest.raises(CheckpointError, match=f"{name}: {words}"):
        require_regular_tree(tree)


@pytest.mark.parametrize("name", ["d/1f", "ocdbt.process_0/d/2e"])
def test_what_is_read_in_parts_may_be_larger(tree: Path, name: str) -> None:
    os.truncate(tree / name, HOLES)
    require_regular_tree(tree)


@pytest.mark.parametrize("kind", ODD_FILES)
def test_only_regular_files_are_opened(tree: Path, kind: str) -> None:
    put_odd_file(tree / "_METADATA", kind)
    with pytest.raises(CheckpointError, match=f"_METADATA: {ODD_FILES[kind]}"):
        require_regular_tree(tree)
