"""A full disk, told apart from every other error of the system."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT}


class DiskFull(OSError):
    """The disk, or the user's share of it, has no room."""


@contextlib.contextmanager
def naming_full_disks(path: Path) -> Iterator[None]:
    """Inside, the system's error of a full disk becomes `DiskFull`; others stay what they are."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise DiskFull(error.errno, error.strerror, error.filename or str(path)) from error


def require_room(folder: Path, needed: int) -> None:
    """Check that a disk has room for so many bytes.

    Raises:
        DiskFull: it has not; the message gives both numbers.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            errno.ENOSPC,
            f"{needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free",
            str(folder),
        )
