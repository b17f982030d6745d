"""How much memory a library may take from the system while it reads what came from outside.

A few bytes of a compressed table can stand for more values than any memory holds, and what they
come to is known only once they are there. So the system is told to refuse: what asks for too much
gets an error where it allocates, as it would on a full machine, and the program goes on.

Only Linux counts what a process has taken in a way that can be limited; elsewhere nothing is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_STATISTICS = Path("/proc/self/statm")
_DATA = 5  # which of its numbers counts the pages of data


@contextlib.contextmanager
def at_most(more: int) -> Iterator[None]:
    """Inside, all threads of this process together can take so many bytes more than they have.

    Args:
        more: bytes.

    Raises:
        MemoryError: something needed more; libraries have errors of their own for it.
    """
    taken = _taken()
    if taken is None:
        yield
        return
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    lowest = [bound for bound in (taken + more, soft, hard) if bound != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(lowest), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _taken() -> int | None:
    """Bytes of data of this process; None: the system does not say."""
    try:
        numbers = _STATISTICS.read_text(encoding="ascii").split()
    except OSError:
        return None
    return int(numbers[_DATA]) * os.sysconf("SC_PAGE_SIZE")
