"""The lock of a run: `.lock` in its directory, which the process that runs holds until it ends.

`cp -al` gives the file a second name in another directory, and both would have one lock. Such a
file is replaced by one of this directory's own. Whether its holder works here or in the other
directory tells the number of the directory that it wrote into it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from diy_core.checkpoints.atomic import atomic_file
from diy_core.system.disk import DiskFull, naming_full_disks
from diy_core.system.held import HeldDirectory
from diy_core.system.outside import is_there, refuse_link

LOCK = ".lock"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
_TRIES, _PAUSE = 20, 0.05  # seconds; others may be about to leave a file that they share with us


def take_lock(path: Path, held: HeldDirectory, report: Callable[[str], None]) -> int:
    """Lock a run's directory for this process.

    Args:
        path: the directory, as it was given.
        held: the directory.
        report: is told where the file system knows no locks.

    Returns:
        The descriptor that holds the lock.

    Raises:
        ValueError: another process holds it; the message names it.
        CheckpointError: something else than a file is there, or it cannot be replaced.
    """
    for left in reversed(range(_TRIES)):
        is_there(held.way / LOCK)  # or it is something that cannot be locked
        refuse_link(held.way / LOCK, "a run locks a file of its own: remove it")
        descriptor = os.open(LOCK, _FLAGS, 0o644, dir_fd=held.descriptor)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, descriptor)
            fault = _lock(descriptor)
            shared = os.fstat(descriptor).st_nlink > 1
            if isinstance(fault, BlockingIOError) and _is_held_here(descriptor, held):
                if not (shared and left):
                    raise _in_use(path, descriptor)
                time.sleep(_PAUSE)
            elif shared:
                if fault is None:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)  # the other directory may need it
                _replace(descriptor, held)
            elif isinstance(fault, BlockingIOError):
                time.sleep(_PAUSE)  # until one that shared it has looked at it
            elif _is_in_place(descriptor, held):
                _tell(path, fault, report)
                with contextlib.suppress(DiskFull), naming_full_disks(path):
                    _sign(descriptor, held)
                stack.pop_all()
                return descriptor
    raise ValueError(f"{path} is opened by other processes all the time: try again later")


def _tell(path: Path, fault: OSError | None, report: Callable[[str], None]) -> None:
    if fault is not None:
        report(
            f"{path} cannot be locked ({fault.strerror}): make sure that no other process "
            "trains there"
        )


def _lock(descriptor: int) -> OSError | None:
    """Take the lock of a file; returns why that cannot be done."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error
    return None


def _sign(descriptor: int, held: HeldDirectory) -> None:
    inode = os.fstat(held.descriptor).st_ino
    words = f"process {os.getpid()} on {socket.gethostname()}\ndirectory {inode}\n"
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, words.encode(), 0)


def _content(descriptor: int) -> str:
    return os.pread(descriptor, 1000, 0).decode("utf-8", "replace")


def _is_held_here(descriptor: int, held: HeldDirectory) -> bool:
    """Whether the holder of a lock works in this directory, as far as that can be told."""
    signed = re.search(r"^directory (\d+)$", _content(descriptor), re.M)
    here = os.fstat(held.descriptor).st_ino  # hard links are on one file system
    return signed is None or int(signed[1]) == here


def _in_use(path: Path, descriptor: int) -> ValueError:
    holder = _content(descriptor).partition("\n")[0].strip()
    return ValueError(
        f"{path} is in use by {holder or 'another process'}: wait for it, or choose another run_dir"
    )


def _is_in_place(descriptor: int, held: HeldDirectory) -> bool:
    with contextlib.suppress(FileNotFoundError):
        there = os.stat(LOCK, dir_fd=held.descriptor, follow_symlinks=False)
        return os.path.samestat(there, os.fstat(descriptor))
    return False


def _replace(shared: int, held: HeldDirectory) -> None:
    """Put a file of this directory in the place of a shared one, unless another process does."""
    with _alone(held) as alone:
        if alone and _is_in_place(shared, held):
            with atomic_file(held.way / LOCK):
                pass  # it is empty until it is locked
    if not alone:
        time.sleep(_PAUSE)


@contextlib.contextmanager
def _alone(held: HeldDirectory) -> Iterator[bool]:
    """Whether no other process is in such a block for this directory, by a lock on it."""
    fault = _lock(held.descriptor)
    try:
        yield not isinstance(fault, BlockingIOError)
    finally:
        if fault is None:
            fcntl.flock(held.descriptor, fcntl.LOCK_UN)
