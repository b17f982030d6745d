"""A place that somebody names to be written to."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from diy_core.errors import CheckpointError
from diy_core.system.stopping import uninterrupted


def as_path(path: str | os.PathLike[str], what: str = "path") -> Path:
    """The path as one of `pathlib`.

    Args:
        path: what was given.
        what: the argument, as an error names it.

    Raises:
        TypeError: it is something else; the message says what is wanted, and what it is.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{what} must be a path, as text or pathlib.Path, got {path!r:.100}")
    return Path(path)


def place(path: str | os.PathLike[str], what: str = "the place to write to") -> Path:
    """The path, unless it is empty: `pathlib` takes that for the current directory.

    Args:
        path: what was given.
        what: the option or argument, as an error names it.

    Raises:
        ValueError: it is empty.
        TypeError: it is not a path.
    """
    there = as_path(path, what)
    if not os.fspath(path):
        raise ValueError(f"{what} is empty: give a path (. is the current directory)")
    return there


def forbids_changes(error: OSError) -> bool:
    """Whether it says that nothing can be made in a folder: by permissions or a read-only mount."""
    return isinstance(error, PermissionError) or error.errno == errno.EROFS


def unchangeable(folder: Path, error: OSError) -> str:
    """That nothing can be made in a folder, and what to do about it."""
    if error.errno == errno.EROFS:
        return f"{folder} is on a read-only file system: choose a place on another one"
    return (
        f"{folder} may not be changed ({error.strerror}): change its permissions, or choose "
        "another place"
    )


@contextlib.contextmanager
def made_directory(path: Path) -> Iterator[None]:
    """Inside, a directory and those that it lies in exist.

    However the block ends, those that were made for it and hold nothing are removed.

    Raises:
        CheckpointError: one of them may not be made.
    """
    made: list[Path] = []
    try:
        missing = itertools.takewhile(lambda at: not os.path.lexists(at), [path, *path.parents])
        for folder in reversed(list(missing)):
            with uninterrupted(), contextlib.suppress(FileExistsError):  # by now, of somebody else
                try:
                    folder.mkdir()
                except OSError as error:
                    if not forbids_changes(error):
                        raise
                    words = f"cannot be made: {unchangeable(folder.parent, error)}"
                    raise CheckpointError(path, words) from error
                made.append(folder)
        path.mkdir(parents=True, exist_ok=True)  # or this says what is in the way
        yield
    finally:
        with contextlib.suppress(OSError):  # what is not empty, or gone, is left as it is
            for folder in reversed(made):
                folder.rmdir()


def is_stream(path: Path) -> bool:
    """Whether something is there that is written to and not replaced, such as a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


def unused_name(path: str) -> str:
    """A name for something new: this, or with the first number after it that is free."""
    names = (f"{path}{number}" for number in itertools.chain([""], itertools.count(2)))
    return next(name for name in names if not os.path.lexists(name))
