"""What was read from outside, and whether it is still what it was.

A file that is opened by name twice may be two files, and a checkpoint that is replaced while it is
read a mixture of two. So whatever `outside` opens is recorded, and compared at the end:

    with unchanged_sources():
        config, weights = read(path), ...       # raises where one of the files changed meanwhile

An object that reads now and then, as the reader of a checkpoint does, keeps a record of its own
(`Sources`). The same is a file with the same device, inode, size and times, always those of an open
descriptor. The time at which the inode changed, which nobody can set, shows what was modified in
place. A filesystem is taken to number a file once for as long as a program runs, as local ones, NFS
and overlays do.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from diy_core.errors import CheckpointError

StrPath = str | os.PathLike[str]
OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # waits for nothing
CHANGED = (
    "was changed or replaced while it was read: start again when no other program writes there"
)


@dataclasses.dataclass(frozen=True)
class Identity:
    """What tells a file, as it is now, from every other one."""

    device: int
    inode: int
    size: int
    modified: int  # nanoseconds
    changed: int

    @classmethod
    def of(cls, file: BinaryIO | int) -> Identity:
        """That of an open file, or of a descriptor."""
        status = os.fstat(file if isinstance(file, int) else file.fileno())
        times = status.st_mtime_ns, status.st_ctime_ns
        return cls(status.st_dev, status.st_ino, status.st_size, *times)

    @classmethod
    def at(cls, path: StrPath) -> Identity | None:
        """That of the file which has a name now; None: nothing has it, or no file to be read."""
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                return None
            descriptor = os.open(path, OPEN)
        except OSError:
            return None
        try:
            return cls.of(descriptor)
        finally:
            os.close(descriptor)


class Sources:
    """What was opened from outside, and what it was then.

    Args:
        roots: only what lies at or below one of them is recorded; none: everything.
    """

    def __init__(self, *roots: StrPath) -> None:
        self._roots = tuple(map(os.path.abspath, roots))
        # By absolute path: the path as it was given, and the file; None: nothing was there.
        self._seen: dict[str, tuple[StrPath, Identity | None]] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, what this thread opens is recorded.

        Opening raises a CheckpointError where a path leads to another file than before.
        """
        token = _RECORDS.set((*_RECORDS.get(), self))
        try:
            yield
        finally:
            _RECORDS.reset(token)

    def add(self, path: StrPath, identity: Identity | None) -> None:
        """Record a file, or with None that nothing has that name.

        Raises:
            CheckpointError: it was recorded before, and was another one.
        """
        whole = os.path.abspath(path)
        if self._roots and not any(_is_below(whole, root) for root in self._roots):
            return
        then = self._seen.setdefault(whole, (path, identity))[1]
        if then != identity:
            raise CheckpointError(path, _how(then, identity))

    def require_unchanged(self) -> None:
        """Look at everything again.

        Raises:
            CheckpointError: another file is there, or it has changed; all of them are named.
        """
        found = [(os.fspath(p), then, Identity.at(p)) for p, then in self._seen.values()]
        changed = {path: _how(then, now) for path, then, now in found if then != now}
        if len(changed) == 1:
            raise CheckpointError(*changed.popitem())
        if changed:
            folder = os.path.commonpath([os.path.dirname(os.path.abspath(p)) for p in changed])
            raise CheckpointError(folder, [f"{path} {how}" for path, how in changed.items()])


def _how(then: Identity | None, now: Identity | None) -> str:
    """What there is to say of a file that is another one now."""
    if then and now and dataclasses.replace(then, changed=now.changed) == now:
        return f"{CHANGED}, sets its mode, links it or labels it (size and time are as before)"
    return CHANGED


_RECORDS: contextvars.ContextVar[tuple[Sources, ...]] = contextvars.ContextVar(
    "records", default=()
)


@contextlib.contextmanager
def unchanged_sources(*roots: StrPath) -> Iterator[Sources]:
    """Inside, what is opened is recorded; at the end all of it must be what it was.

    Args:
        roots: only what lies at or below one of them; none: everything.

    Raises:
        CheckpointError: a file was changed or replaced meanwhile. It also takes the place of the
            error of a block that could not read what it found.
    """
    sources = Sources(*roots)
    try:
        with sources.recording():
            yield sources
    except (ValueError, OSError) as error:
        with _because_of(error):
            sources.require_unchanged()
        raise
    sources.require_unchanged()


def record(path: StrPath, identity: Identity | None) -> None:
    """Add a file, or that there is none, to all records of this thread.

    Raises:
        CheckpointError: of `Sources.add`.
    """
    for sources in _RECORDS.get():
        sources.add(path, identity)


@contextlib.contextmanager
def _because_of(error: Exception) -> Iterator[None]:
    try:
        yield
    except CheckpointError as other:
        raise other from error


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
