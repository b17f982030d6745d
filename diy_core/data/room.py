"""A full disk as an error that says what was being written, what it takes, and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from diy_core.training.disk import DiskFull, naming_full_disks


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
        raise _full(path, needed, shutil.disk_usage(path.parent).free, advice) from error


def _full(path: Path, needed: int, free: int, advice: str) -> DiskFull:
    text = f"{os.strerror(errno.ENOSPC)}: it takes {needed:,} bytes, {free:,} are free. {advice}"
    return DiskFull(errno.ENOSPC, text, str(path))
