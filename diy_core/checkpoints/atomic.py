"""Writing a directory or a file whole or not at all.

Everything is written in a hidden place beside (`diy_core.system.workplaces`), synced to the disk,
and moved into place at the end: a new one by a rename, an old one by exchanging the two names in
one step. A process that is killed leaves the old or the new, never half of one and never nothing;
what it left beside them is removed by the next write to the same place. Reading changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from diy_core.errors import CheckpointError, naming
from diy_core.system.disk import FULL, naming_full_disks
from diy_core.system.held import real
from diy_core.system.leaving import clean_up, leave, left_aside
from diy_core.system.mounts import mounts_at_or_below, refuse_mounts
from diy_core.system.places import forbids_changes, unchangeable
from diy_core.system.removing import remove_tree
from diy_core.system.replacing import Replacement, in_the_way
from diy_core.system.stopping import uninterrupted
from diy_core.system.workplaces import Workplace, open_workplace

__all__ = [
    "atomic_directory",
    "atomic_file",
    "recover",
    "refuse_left_aside",
    "remove_directory",
    "replacement",
]


@contextlib.contextmanager
def atomic_directory(
    path: str | Path, *, overwrite: bool = True, own: Callable[[str], bool] | None = None
) -> Iterator[Path]:
    """A temporary directory to write into; it becomes `path` when the block ends without an error.

    Args:
        path: an existing directory there is replaced, and hands on its permissions.
        overwrite: False refuses to replace one, also one that appears in the meantime.
        own: tells by its relative path which entry of an existing directory goes with it; all
            others are kept. None: what is there now goes, and what comes meanwhile is kept.

    Raises:
        CheckpointError: `path` is a file, a mount point or has one below, is not to be replaced,
            or its parent does not exist; or somebody changed meanwhile what was to be replaced.
    """
    with replacement(path, overwrite=overwrite, own=own) as new:
        yield new.folder


@contextlib.contextmanager
def replacement(
    path: str | Path, *, overwrite: bool = True, own: Callable[[str], bool] | None = None
) -> Iterator[Replacement]:
    """The same, for a writer that wants to see what is kept before the end: `keep_others`."""
    given, path = Path(path), _target(path)
    if path.exists() and not path.is_dir():
        raise CheckpointError(path, "exists and is not a directory: choose another place")
    _refuse_working_directory(path)
    with _written(given, path, overwrite) as work:
        new = Replacement(work, overwrite, own)
        work.new.mkdir()
        yield new
        new.put_in_place()


def _refuse_working_directory(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # somebody removed it
        if path.exists() and Path.cwd().is_relative_to(os.path.realpath(path)):
            raise CheckpointError(
                path, "is or holds the current directory, and is not replaced: go elsewhere first"
            )


@contextlib.contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """The same for one file: an empty temporary file to write, which becomes `path`.

    Raises:
        CheckpointError: `path` is a directory, is not to be replaced, or its parent does not exist.
    """
    given, path = Path(path), _target(path)
    if path.is_dir():
        raise CheckpointError(path, "is a directory, and a file is to be written: give its name")
    if path.exists() and not path.is_file():
        raise CheckpointError(path, "exists and is not a regular file: choose another place")
    with _written(given, path, overwrite) as work:
        new = Replacement(work, overwrite)
        work.new.touch(exist_ok=False)
        yield work.new
        new.put_in_place()


@contextlib.contextmanager
def _written(given: Path, path: Path, overwrite: bool) -> Iterator[Workplace]:
    if path.exists() and not overwrite:
        raise in_the_way(path)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_naming(path))
        stack.enter_context(naming_full_disks(path))
        try:
            with uninterrupted():
                work = stack.enter_context(open_workplace(path))
                stack.callback(leave, work)
        except OSError as error:
            if forbids_changes(error):
                why = unchangeable(path.parent, error)
                raise CheckpointError(
                    given, f"cannot be written: it is made anew beside, and {why}"
                ) from error
            error.filename, error.filename2 = str(given), None
            raise
        stack.enter_context(naming(work.path, given))
        stack.enter_context(naming(work.new, given))
        stack.enter_context(naming_full_disks(path))
        yield work


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error that names no file, as that of a full disk, says what was being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def _target(path: str | Path) -> Path:
    path = real(path)  # through a link, as opening a file for writing does
    if path.is_symlink():
        raise CheckpointError(path, "is a link that leads back to itself: choose another place")
    if path.parent.exists() and not path.parent.is_dir():
        raise CheckpointError(path, f"lies in {path.parent}, which is a file: choose another place")
    if not path.parent.is_dir():
        raise CheckpointError(path, f"the parent directory {path.parent} does not exist")
    recover(path)
    refuse_mounts(path)
    return path


def remove_directory(path: Path) -> None:
    """Remove a directory: first its name, so that a part of it never counts as whole.

    Of a link the name alone is removed, and not what it leads to. What cannot be removed is said;
    the next write to `path` tries again.

    Raises:
        OSError: it keeps its name; as where it is a mount point, or one lies below it.
    """
    if path.is_symlink():
        path.unlink()
        return
    path = real(path)
    if points := mounts_at_or_below(path):
        raise OSError(errno.EBUSY, f"a file system is mounted at {points[0]}", str(path))
    with contextlib.ExitStack() as stack:
        try:
            with uninterrupted():
                work = stack.enter_context(open_workplace(path))
                stack.callback(leave, work)
        except OSError as error:
            if error.errno not in FULL:
                raise
            remove_tree(path)  # there is no room for another name, and there must be some
            return
        path.rename(work.new)


def recover(path: str | Path) -> None:
    """Undo what a killed write left beside `path`: restore the old one, drop the remains.

    For those who write there: reading changes nothing.
    """
    clean_up(real(path))


def refuse_left_aside(path: str | Path) -> None:
    """Raise for a place where nothing is since its writer was killed between two moves.

    Raises:
        CheckpointError: that is so; the message says where the old one is and how it comes back.
    """
    if (old := left_aside(Path(os.path.realpath(path)))) is not None:
        raise CheckpointError(
            path,
            f"does not exist, as the process that replaced it was killed: the old one is whole in "
            f"{old}, and the next write to {path} moves it back",
        )
