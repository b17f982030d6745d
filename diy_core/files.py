"""Writing a directory whole or not at all.

Everything is written to a hidden sibling, synced to the disk, and renamed into place at the end. A
process that is killed leaves the old directory or the new one, never half of one; what it left
beside them is removed by the next write to the same place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from diy_core.errors import CheckpointError


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A temporary directory to write into; it becomes `path` when the block ends without an error.

    An existing `path` is replaced: the old directory is moved aside, the new one moved in, and the
    old one removed. Should the process be killed between the two moves, the next write or
    `recover` moves the old one back.

    Raises:
        CheckpointError: `path` is a file, or its parent directory does not exist.
    """
    path = Path(os.path.abspath(path))
    if path.exists() and not path.is_dir():
        raise CheckpointError(path, "exists and is not a directory")
    if not path.parent.is_dir():
        raise CheckpointError(path, f"the parent directory {path.parent} does not exist")
    recover(path)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        yield temporary
        _sync_tree(temporary)
        _swap_in(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover(path: str | Path) -> None:
    """Undo what a killed write left beside `path`: restore the old directory, drop the remains."""
    path = Path(os.path.abspath(path))
    old = _aside(path)
    if old.is_dir() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)
    for remains in path.parent.glob(f".{path.name}.tmp-*"):
        shutil.rmtree(remains, ignore_errors=True)


def _swap_in(new: Path, path: Path) -> None:
    if path.exists():
        path.rename(_aside(path))
    new.rename(path)
    _sync(path.parent)
    shutil.rmtree(_aside(path), ignore_errors=True)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _sync_tree(root: Path) -> None:
    """Ask the disk to hold every file and directory below root before anything is renamed."""
    for folder, _, names in os.walk(root):
        for name in names:
            _sync(Path(folder) / name)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
