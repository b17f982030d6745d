"""A full disk, told apart from every other error of the system."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT}
_IN_WORDS = {
    errno.ENOENT: "does not exist",
    errno.EISDIR: "is a directory, and a file is needed: give another path",
    errno.ENOTDIR: "is not a directory, or lies in a file: give another path",
    errno.EEXIST: "exists already: give another path",
    errno.EACCES: "Permission denied: change its permissions, or give another path",
    errno.EPERM: "Permission denied: change its permissions, or give another path",
    errno.EROFS: "Read-only file system: give a path on another one",
}


class DiskFull(OSError):
    """The disk, or the user's share of it, has no room.

    Attributes:
        advises: whether its text says already what to do.
        files: whether it is files that it has no room for, whatever bytes are free.
    """

    advises = False
    files = False


@contextlib.contextmanager
def naming_full_disks(path: Path) -> Iterator[None]:
    """Inside, the system's error of a full disk becomes `DiskFull`; others stay what they are."""
    try:
        yield
    except DiskFull:
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        where, words, files = (
            error.filename or str(path),
            error.strerror,
            _takes_no_more_files(path),
        )
        if files:
            words = f"{words}: the disk takes no more files (it has no inodes left)"
        full = DiskFull(error.errno, words, where)
        full.files = files
        raise full from error


@contextlib.contextmanager
def room_for(path: Path, needed: int, advice: str, *, at_once: bool = False) -> Iterator[None]:
    """Inside, `path` is written; should the disk be full, the error says more than the system's.

    Args:
        path: what people know it by; its parent exists.
        needed: bytes that it takes, about.
        advice: what to do.
        at_once: refuse before anything is written, where less is free.

    Raises:
        DiskFull: the disk has no room; any other error stays what it is.
    """
    free = shutil.disk_usage(path.parent).free
    if at_once and free < needed:
        raise _full(path, needed, free, advice)
    try:
        with naming_full_disks(path):
            yield
    except DiskFull as error:
        if not error.files:
            raise _full(path, needed, shutil.disk_usage(path.parent).free, advice) from error
        told = DiskFull(error.errno, f"{error.strerror}. {advice}", str(path))
        told.advises = True
        raise told from error


def _takes_no_more_files(path: Path) -> bool:
    """Looked at while the error comes up: afterwards what was begun is removed."""
    there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    found = os.statvfs(there)
    return found.f_files > 0 and found.f_favail == 0


def _full(path: Path, needed: int, free: int, advice: str) -> DiskFull:
    text = f"{os.strerror(errno.ENOSPC)}: it takes {needed:,} bytes, {free:,} are free. {advice}"
    error = DiskFull(errno.ENOSPC, text, str(path))
    error.advises = True
    return error


def require_room(folder: Path, needed: int) -> None:
    """Check that a disk has room for so many bytes.

    Raises:
        DiskFull: it has not; the message gives both numbers.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            errno.ENOSPC, f"{_size(needed)} are needed, {_size(free)} are free", str(folder)
        )


def spare(nbytes: int) -> int:
    """Bytes beside a checkpoint that stay free, for metrics and for what it holds beside arrays."""
    return min(64 << 20, nbytes // 10 + (1 << 20))


def described(error: OSError) -> str:
    """An error in words: the file, what is wrong with it and, where that is known, what to do."""
    if error.errno not in FULL:
        if error.filename is None or error.errno is None:
            return str(error)
        return f"{error.filename}: {_IN_WORDS.get(error.errno, error.strerror)}"
    if isinstance(error, DiskFull) and error.advises:
        return f"{error.filename}: {error.strerror}"
    return (
        f"{error.filename or 'the disk'}: {error.strerror}: {_free(error)}, or choose another "
        "directory, then give the same command again"
    )


def _free(error: OSError) -> str:
    return "remove some" if isinstance(error, DiskFull) and error.files else "free some"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
