"""Files that come from outside: opened only where they are regular files.

Everything here that reads a file which a user names opens it by `open_regular`, so that nothing
waits for a FIFO, reads a device without an end, or takes what cannot be read for what is not there.
`sources` records what was opened, and compares.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from diy_core.errors import CheckpointError
from diy_core.system.limits import how_to_raise
from diy_core.system.limits import limit as limit_of
from diy_core.system.sources import CHANGED, OPEN, Identity, StrPath, record

_KINDS: dict[str, Callable[[int], bool]] = {
    "a directory": stat.S_ISDIR,
    "a FIFO": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}
_LEADS = {errno.ENOENT: "does not exist", errno.ELOOP: "leads in a circle"}  # a link
_Result = TypeVar("_Result")


def open_regular(path: StrPath) -> io.BufferedReader:
    """Open a file for reading, if it is one: never waits, whatever has that name.

    Args:
        path: links are followed.

    Raises:
        CheckpointError: nothing there, something else than a regular file, one that may not be
            read, or, while `sources` records, another one than before.
    """
    require_regular(path)  # opening a device may already do something
    descriptor = _reach(path, lambda: os.open(path, OPEN))
    try:
        _refuse_kind(path, os.fstat(descriptor).st_mode)
        record(path, Identity.of(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def open_own(path: StrPath, why: str) -> io.FileIO:
    """Open a file that is only ours, to add to its end and to cut it; it is made if need be.

    Args:
        path: no link: what is written through one is written into somebody's file elsewhere.
        why: as `refuse_link`.

    Raises:
        CheckpointError: it is a link, or no regular file.
    """
    refuse_link(path, why)
    is_there(path)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o666)
    try:
        _refuse_kind(path, os.fstat(descriptor).st_mode)
        return io.FileIO(descriptor, "ab")
    except BaseException:
        os.close(descriptor)
        raise


def refuse_link(path: StrPath, why: str) -> None:
    """Raise where a symbolic link has that name.

    Args:
        path: may be that of nothing.
        why: what is wrong with it and what to do, such as `a run locks a file: remove it`.

    Raises:
        CheckpointError: it is a link.
    """
    if os.path.islink(path):
        raise CheckpointError(path, f"is a link, and {why}")


def read_bytes(path: StrPath, limit: int | str = "file_bytes") -> bytes:
    """The content of a file, which did not change while it was read.

    Args:
        path: links are followed.
        limit: bytes that it may have, or the name of one of `limits`.

    Raises:
        CheckpointError: as `open_regular`; or it has more than `limit` bytes.
    """
    most = limit_of(limit) if isinstance(limit, str) else limit
    with open_regular(path) as file:
        before = Identity.of(file)
        # Some virtual filesystems say a size of 0, so a small one is not believed.
        content = None if before.size > most else _reach(path, lambda: file.read(most + 1))
        if content is None or len(content) > most:
            how = f": {how_to_raise(limit)}" if isinstance(limit, str) else ""
            raise CheckpointError(path, f"is longer than {most} bytes{how}")
        if Identity.of(file) != before:
            raise CheckpointError(path, CHANGED)
    return content


def read_text(path: StrPath, limit: int | str = "file_bytes") -> str:
    """The content of a file of text, in UTF-8; lines end in a newline, as `open` has it.

    Raises:
        CheckpointError: as `read_bytes`; or it is not UTF-8.
    """
    try:
        text = read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"is not UTF-8: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def fill(file: BinaryIO | int, path: StrPath, start: int, buffer: memoryview) -> None:
    """Fill a buffer with the bytes of an open file, or of a descriptor, from `start` on.

    Read, not mapped: a mapped file that becomes shorter kills the process that looks at it, and its
    pages count as memory of this process until it is closed.

    Raises:
        CheckpointError: the file ends before the buffer is full, or the disk fails.
    """
    descriptor = file if isinstance(file, int) else file.fileno()
    try:
        while len(buffer):
            count = os.preadv(descriptor, [buffer], start)
            if not count:
                raise CheckpointError(path, "has become shorter while it was read")
            start, buffer = start + count, buffer[count:]
    except OSError as error:
        raise CheckpointError(path, _why_not(path, error)) from error


def is_there(path: StrPath) -> bool:
    """Whether a regular file has that name; False only where nothing at all has it.

    Raises:
        CheckpointError: something has that name and is not a regular file, such as a link that
            leads nowhere; or the directory may not be looked into.
    """
    if not _has_name(path):
        record(path, None)
        return False
    require_regular(path)
    return True


def require_regular(path: StrPath) -> None:
    """Raise where a path is not that of a regular file.

    Raises:
        CheckpointError: it is something else, or nothing is there; the message says which.
    """
    _refuse_kind(path, _reach(path, lambda: os.stat(path)).st_mode)


def names_in(folder: StrPath) -> list[str]:
    """What a directory holds, sorted; empty also where nothing at all has that name.

    Raises:
        CheckpointError: it is not a directory, or may not be read.
    """
    return sorted(_reach(folder, lambda: os.listdir(folder))) if _has_name(folder) else []


def require_tree(folder: StrPath) -> list[Path]:
    """Look at, and record, all that lies in a directory which a library is about to read by itself.

    Returns:
        The files in it.

    Raises:
        CheckpointError: something in it is neither a directory nor a regular file that may be read.
    """
    seen: set[tuple[int, int]] = set()
    pending, files = [Path(folder)], []
    while pending:
        here = pending.pop()
        status = _reach(here, here.stat)
        if (key := (status.st_dev, status.st_ino)) in seen:  # links may lead in a circle
            continue
        seen.add(key)
        for item in (here / name for name in names_in(here)):
            if stat.S_ISDIR(_reach(item, item.stat).st_mode):
                pending.append(item)
            else:
                open_regular(item).close()
                files.append(item)
    return files


def _has_name(path: StrPath) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise CheckpointError(path, _why_not(path, error)) from error
    return True


def _refuse_kind(path: StrPath, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for name, fits in _KINDS.items() if fits(mode)), "something else")
        raise CheckpointError(path, f"cannot be read: it is {kind}, not a regular file")


def _reach(path: StrPath, act: Callable[[], _Result]) -> _Result:
    """What `act` does with a path; its errors name the path and say why."""
    try:
        return act()
    except (OSError, ValueError) as error:  # ValueError: a zero in the name
        raise CheckpointError(path, _why_not(path, error)) from error


def _how_to_get(target: str) -> str:
    """What brings the file that a link leads to, where its name says what made the link."""
    if "annex/objects/" in target:
        return ": run `git annex get` where it was cloned"
    if "../blobs/" in target:
        return (
            ": it was not downloaded to the end, or was removed from the cache; download it again"
        )
    return ""


def _why_not(path: StrPath, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return f"cannot be read: {error}"
    if (leads := _LEADS.get(error.errno or 0)) is not None:
        with contextlib.suppress(OSError):
            target = os.readlink(path)
            return f"is a link to {target}, which {leads}{_how_to_get(target)}"
        return f"cannot be read: it {leads}"
    return f"cannot be read: {error.strerror or error}"
