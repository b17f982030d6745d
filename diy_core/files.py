"""Writing a directory whole or not at all.

Everything is written to a hidden sibling, synced to the disk, and renamed into place at the end. A
process that is killed leaves the old directory or the new one, never half of one; what it left
beside them is removed by the next write to the same place. A writer that lives holds a lock on its
hidden sibling, which the system drops when the process ends, so nobody takes it for remains.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
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
    path = Path(os.path.realpath(path))  # through a link, as opening a file for writing does
    if path.exists() and not path.is_dir():
        raise CheckpointError(path, "exists and is not a directory")
    if not path.parent.is_dir():
        raise CheckpointError(path, f"the parent directory {path.parent} does not exist")
    recover(path)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    temporary.mkdir()
    try:
        with _lock(temporary):
            yield temporary
            _sync_tree(temporary)
            _swap_in(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        recover(path)  # a failure between the two moves left the old directory aside


def recover(path: str | Path) -> None:
    """Undo what a killed write left beside `path`: restore the old directory, drop the remains."""
    path = Path(os.path.realpath(path))
    pattern = re.compile(re.escape(f".{path.name}.tmp-") + "[0-9a-f]{8}")
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    remains = [sibling for sibling in siblings if pattern.fullmatch(sibling.name)]
    dead = [sibling for sibling in remains if not _is_locked(sibling)]
    for sibling in dead:
        shutil.rmtree(sibling, ignore_errors=True)
    if len(dead) < len(remains):
        return  # another process is writing here, and may be between its two moves
    old = _aside(path)
    if old.is_dir() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Hold a lock on a directory; on a file system without locks, nothing."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_locked(directory: Path) -> bool:
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return False  # gone by now
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


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
        for file in (Path(folder) / name for name in names):
            if file.is_file() and not file.is_symlink():
                _sync(file)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
