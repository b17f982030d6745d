"""A place that somebody names to be written to."""

from __future__ import annotations

import os
from pathlib import Path


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
        TypeError: it is no path.
    """
    there = as_path(path, what)
    if not os.fspath(path):
        raise ValueError(f"{what} is empty: give a path (. is the current directory)")
    return there


def is_stream(path: Path) -> bool:
    """Whether something is there that is written to and not replaced, such as a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()
