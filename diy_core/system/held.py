"""A directory that is held: what is written there goes into it, whatever becomes of its name.

A lock is on a directory, while a path is only a name, which may be given to another directory at
any time. On Linux `/proc/PID/fd/N` leads to the directory that a process has open, under whatever
name it is by now; any library that takes a path can write there. Such a path is a `way`. People
never see it: `named` puts the name in its place, in whatever is said to them.

Elsewhere there is no such way. The name is used then, and `in_place` tells whether it still is that
of the directory.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypeVar

from diy_core.errors import CheckpointError

_FOLLOWS = Path("/proc/self/fd").is_dir()
_HELD: dict[str, HeldDirectory] = {}  # by way
_Error = TypeVar("_Error", bound=BaseException)


class HeldDirectory:
    """A directory that stays open until it is closed.

    Args:
        name: its path now.

    Attributes:
        name: as it was given.
        descriptor: of the open directory.
        way: a path that leads there, also when it was moved; `name` where there is no such path.
        follows: whether `way` does that.
    """

    def __init__(self, name: Path) -> None:
        self.name = name
        self.descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.follows = _FOLLOWS
        # Not /proc/self: children that this process starts find their way, too.
        self.way = Path(f"/proc/{os.getpid()}/fd/{self.descriptor}") if _FOLLOWS else name
        if self.follows:
            _HELD[str(self.way)] = self

    def close(self) -> None:
        """Let go of it."""
        _HELD.pop(str(self.way), None)
        os.close(self.descriptor)

    @property
    def in_place(self) -> bool:
        """Whether the name is still that of this directory."""
        try:
            return os.path.samestat(os.stat(self.name), os.fstat(self.descriptor))
        except OSError:
            return False

    @property
    def called(self) -> Path:
        """The name that it has now, as far as that can be told."""
        if self.in_place or not self.follows:
            return self.name
        return Path(os.readlink(self.way))


def real(path: str | os.PathLike[str]) -> Path:
    """A path without links in it, as `os.path.realpath`, but for the way to a held directory.

    Links that lead in a circle stay as they are, where `Path.resolve` raises a RuntimeError.
    """
    whole = os.path.realpath(path)
    if (held := _held_by(os.path.abspath(path))) is not None:
        inside = os.path.relpath(whole, os.path.realpath(held.way))
        if inside == os.curdir:
            return held.way
        if inside.partition(os.sep)[0] != os.pardir:
            return held.way / inside
    return Path(whole)


def named(text: str) -> str:
    """A text with the names of held directories instead of ways to them."""
    for way, held in list(_HELD.items()):
        if way in text:
            text = str(held.called).join(re.split(rf"{re.escape(way)}(?!\d)", text))
    return text


def with_names(error: _Error) -> _Error:
    """The error, in which held directories have their names."""
    if isinstance(error, CheckpointError):
        error.where, error.faults = named(str(error.where)), [named(one) for one in error.faults]
    if isinstance(error, OSError):
        for key in ("filename", "filename2"):
            if isinstance(value := getattr(error, key), str | os.PathLike):
                setattr(error, key, named(os.fspath(value)))
    error.args = tuple(named(part) if isinstance(part, str) else part for part in error.args)
    return error


def _held_by(path: str) -> HeldDirectory | None:
    below = (
        held for way, held in _HELD.items() if path == way or path.startswith(f"{way}{os.sep}")
    )
    return next(below, None)
