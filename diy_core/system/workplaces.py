"""A hidden place beside what is to be written, that nobody can take for anything but ours.

    .NAME.tmp-0123abcd.lock     the mark while the place itself is made, and while it is removed
    .NAME.tmp-0123abcd/owner    the mark: what the place is for; locked as long as its writer lives
                      /new      what is being written, and after an exchange what stood there before
                      /old      what stood there before, where names cannot be exchanged
                      /moved    what `new` is and what was known of the old one, before they move
                      /by-...   what writers that went on at the same time put there: an inode

The mark and its lock are there before the place is: they are made as a file without a name, locked,
named, and moved in. What bears no mark is never removed, whatever it is called; what bears one that
is locked is somebody's at work.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

from diy_core.system.removing import remove_tree

_MARK, _PROGRAM = "owner", "diy-lm"
_LONGEST = 255 - len(".lock")  # bytes of a name
_MOST = 10_000  # bytes of a mark
_TRIES = 5


@dataclasses.dataclass(frozen=True)
class Workplace:
    """A hidden place of one writer.

    Attributes:
        path: the directory.
        target: what is written there in the end.
    """

    path: Path
    target: Path

    @property
    def new(self) -> Path:
        """What is being written."""
        return self.path / "new"

    @property
    def old(self) -> Path:
        """What stood there before, where it takes two moves to replace it."""
        return self.path / "old"

    @property
    def record(self) -> Path:
        """What was known before the move; without it nothing was moved."""
        return self.path / "moved"

    def drop_old(self) -> None:
        """Remove what stood there before: another one stands there by now."""
        remove_tree(self.old)

    @property
    def claim(self) -> Path:
        """Where the mark is while the directory is not, or not any more."""
        return self.path.with_name(f"{self.path.name}.lock")

    def make(self) -> None:
        """Make the directory, once it is claimed."""
        self.path.mkdir(0o700)  # what is private is private also while it is written
        os.rename(self.claim, self.path / _MARK)

    def remove(self) -> None:
        """Remove all, the mark last.

        Raises:
            OSError: something in it could not be removed; the mark stays then.
        """
        for name in os.listdir(self.path):
            if name != _MARK:
                remove_tree(self.path / name)
        os.rename(self.path / _MARK, self.claim)
        for _ in range(_TRIES):  # others may have left a note until the mark was gone
            with contextlib.suppress(OSError):
                remove_tree(self.path)
        self.drop_claim()

    def drop_claim(self) -> None:
        """Remove a claim, and the directory that was made or was to be made, if it is empty."""
        with contextlib.suppress(OSError):
            self.path.rmdir()
        self.claim.unlink(missing_ok=True)


@contextlib.contextmanager
def open_workplace(target: Path) -> Iterator[Workplace]:
    """A workplace, locked inside the block; it stays until it is removed."""
    name = f"{_prefix(target)}{uuid.uuid4().hex[:8]}"
    work = Workplace(target.with_name(name), target)
    lock = _claim(work.claim, _mark(work.path, target))
    try:
        try:
            work.make()
        except BaseException:
            work.drop_claim()
            raise
        yield work
    finally:
        os.close(lock)


def _prefix(target: Path) -> str:
    room = _LONGEST - len("..tmp-01234567")
    return f".{os.fsdecode(os.fsencode(target.name)[:room])}.tmp-"


def _mark(place: Path, target: Path) -> bytes:
    values = {
        "program": _PROGRAM,
        "place": place.name,
        "for": target.name,
        "process": os.getpid(),
        "machine": socket.gethostname(),
    }
    return json.dumps(values).encode()


def _claim(file: Path, content: bytes) -> int:
    """Make a file that appears whole and locked, as far as the file system can do that.

    Returns:
        The descriptor that holds the lock.
    """
    with contextlib.suppress(OSError, AttributeError), contextlib.ExitStack() as stack:
        descriptor = os.open(file.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
        stack.callback(os.close, descriptor)
        _lock(descriptor)
        os.write(descriptor, content)
        parent = os.open(file.parent, os.O_PATH | os.O_DIRECTORY)
        try:
            os.link(f"/proc/self/fd/{descriptor}", file.name, dst_dir_fd=parent)
        finally:
            os.close(parent)
        stack.pop_all()
        return descriptor
    return _claim_in_steps(file, content)


def _claim_in_steps(file: Path, content: bytes) -> int:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _lock(descriptor)
        os.write(descriptor, content)
    except BaseException:
        file.unlink(missing_ok=True)
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int) -> None:
    """On a file system without locks nothing is locked, and nothing taken for abandoned."""
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def workplaces(target: Path) -> list[Workplace]:
    """All that bear the mark of ours for this target, whether their writers live or not."""
    places = _named(target, "")
    return [Workplace(place, target) for place in places if _is_ours(place / _MARK, place, target)]


@contextlib.contextmanager
def abandoned(target: Path) -> Iterator[list[Workplace]]:
    """Inside, the workplaces whose writers are dead, held; abandoned claims are removed."""
    with contextlib.ExitStack() as stack:
        for claim in _named(target, ".lock"):
            work = Workplace(claim.with_suffix(""), target)
            if _is_ours(claim, work.path, target) and _take(claim, stack):
                work.drop_claim()
        yield [work for work in workplaces(target) if _take(work.path / _MARK, stack)]


def _named(target: Path, ending: str) -> list[Path]:
    pattern = re.compile(re.escape(_prefix(target)) + "[0-9a-f]{8}" + re.escape(ending))
    try:
        names = os.listdir(target.parent)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []
    return [target.parent / name for name in sorted(names) if pattern.fullmatch(name)]


def _is_ours(mark: Path, place: Path, target: Path) -> bool:
    if place.is_symlink():
        return False
    try:
        with _opened(mark) as descriptor:
            values = json.loads(os.pread(descriptor, _MOST, 0))
    except (OSError, ValueError):
        return False
    wanted = {"program": _PROGRAM, "place": place.name, "for": target.name}
    return isinstance(values, dict) and values.items() >= wanted.items()


@contextlib.contextmanager
def _opened(mark: Path) -> Iterator[int]:
    descriptor = os.open(mark, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _take(mark: Path, stack: contextlib.ExitStack) -> bool:
    """Lock a mark, if nobody holds it, until the stack is left."""
    try:
        descriptor = stack.enter_context(_opened(mark))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Its writer may have removed it before it let go.
        return os.path.samestat(os.fstat(descriptor), mark.lstat())
    except OSError:  # somebody works there; or there are no locks here, and nobody can tell
        return False
