"""What is in a directory, told apart from what is there later, and carried to another one."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from diy_core.system.mounts import mounts_at_or_below
from diy_core.system.removing import remove_tree

# Of each file: inode, size, and when its content changed, in ns. Of a directory: nothing but that
# it is one, as what is in it has entries of its own.
Identity = tuple[int, ...]
Snapshot = dict[str, Identity]


def snapshot(path: Path) -> Snapshot:
    """Every file and directory below a directory by relative path; of a file, itself as ``.

    Links are not followed. What is not there has no entries.
    """
    return dict(_walk(path, ""))


def _walk(path: Path, name: str) -> Iterator[tuple[str, Identity]]:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        yield name, (found.st_ino, found.st_size, found.st_mtime_ns)
        return
    if name:
        yield name, ()
    for item in sorted(os.listdir(path)):
        yield from _walk(path / item, f"{name}/{item}" if name else item)


def top(name: str) -> str:
    """The first part of a relative path."""
    return name.partition("/")[0]


def first_change(before: Mapping[str, Identity], after: Mapping[str, Identity]) -> str | None:
    """What is in `after` and was not in `before`, or is another file now; None: nothing."""
    return next((name for name, what in after.items() if before.get(name) != what), None)


def carry(name: str, old: Path, new: Path, *, move: bool = False) -> None:
    """Have one entry of a directory in another one, in place of what has its name there.

    Args:
        name: relative.
        old: a directory.
        new: another one, on the same file system. A file is linked, so that nothing is copied.
        move: move a file of somebody else that may be neither linked nor read.

    Raises:
        FileNotFoundError: it is not there any more.
        PermissionError: it may be neither linked nor read.
    """
    source, to = old / name, new / name
    to.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        if to.is_symlink() or not to.is_dir():
            remove_tree(to)
            to.mkdir(exist_ok=True)
        return
    if os.path.lexists(to):
        if os.path.samestat(source.lstat(), to.lstat()):
            return
        remove_tree(to)
    try:
        os.link(source, to, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except FileExistsError:  # another writer carried it there
        carry(name, old, new, move=move)
    except OSError:  # a file system without hard links, or a file of somebody else
        try:
            shutil.copy2(source, to, follow_symlinks=False)
        except PermissionError:
            if not move:
                raise
            source.rename(to)


def remove_entries(path: Path, seen: Snapshot) -> None:
    """Remove what was seen of a directory, and nothing else; the directory too, if it is empty.

    What resists is left: it may be that something new is in it, or that others may not remove it.
    """
    if mounts_at_or_below(path):
        return
    for name in reversed(seen):
        with contextlib.suppress(OSError):
            remove = os.unlink if seen[name] else os.rmdir
            remove(path / name)
    with contextlib.suppress(OSError):
        path.rmdir()
