"""A place that somebody names to be written to."""

from __future__ import annotations

import os
from pathlib import Path


def place(path: str | os.PathLike[str], what: str = "the place to write to") -> Path:
    """The path, unless it is empty: `pathlib` takes that for the current directory.

    Args:
        path: what was given.
        what: the option or argument, as an error names it.

    Raises:
        ValueError: it is empty.
    """
    if not os.fspath(path):
        raise ValueError(f"{what} is empty: give a path (. is the current directory)")
    return Path(path)


def is_stream(path: Path) -> bool:
    """Whether something is there that is written to and not replaced, such as a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()
