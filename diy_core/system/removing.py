"""Removing directories: following no link, and on one mount alone."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from diy_core.system.mounts import mount_of

# A handle on a directory, also on one that may not be listed.
_HANDLE = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY
_ALL = stat.S_IRWXU


def remove_tree(path: Path) -> None:
    """Remove a file, or a directory with all below it, as far as that is possible.

    Raises:
        OSError: the first thing that could not be removed; all that could be is gone. Nothing
            there is no error.
    """
    failures: list[OSError] = []
    try:
        parent = os.open(path.parent, _HANDLE)
    except FileNotFoundError:
        return
    try:
        _remove(parent, path, failures)
    finally:
        os.close(parent)
    if failures:
        raise failures[0]


def _remove(parent: int, path: Path, failures: list[OSError]) -> None:
    before = len(failures)
    try:
        if stat.S_ISDIR(os.stat(path.name, dir_fd=parent, follow_symlinks=False).st_mode):
            _empty(parent, path, failures)
            if len(failures) == before:
                os.rmdir(path.name, dir_fd=parent)
        else:
            os.unlink(path.name, dir_fd=parent)
    except FileNotFoundError:
        pass  # somebody else removed it
    except OSError as error:
        failures.append(OSError(error.errno, error.strerror, str(path)))


def _empty(parent: int, path: Path, failures: list[OSError]) -> None:
    handle = os.open(path.name, _HANDLE | os.O_NOFOLLOW, dir_fd=parent)
    try:
        if mount_of(handle) != mount_of(parent):
            raise OSError(errno.EBUSY, "is a mount point", str(path))
        _open_to_us(handle)
        folder = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=handle)
    finally:
        os.close(handle)
    try:
        for name in os.listdir(folder):
            _remove(folder, path / name, failures)
    finally:
        os.close(folder)


def _open_to_us(handle: int) -> None:
    """Give the owner back what is needed to remove what is inside."""
    mode = os.fstat(handle).st_mode
    if mode & _ALL != _ALL and os.path.exists(place := f"/proc/self/fd/{handle}"):
        os.chmod(place, stat.S_IMODE(mode) | _ALL)
