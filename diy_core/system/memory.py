"""Giving freed memory back to the system, and saying where it has no more."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

# Of the C library's mallopt. Once set, a threshold is no longer moved by the library itself.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 20  # bytes
_ADAPTED = 32 << 20  # where the library's own threshold ends after large buffers were freed

LESS = "end other programs, or give it less to do at once"


def too_little(error: MemoryError, what_to_do: str) -> str:
    """That there is not enough memory, how much was asked for where that is known, and what to do.

    Args:
        error: NumPy's says how much was asked for, and Python's nothing.
        what_to_do: such as `make batch_size smaller`.
    """
    asked = str(error).strip().rstrip(".")
    return f"not enough memory{f' ({asked})' if asked else ''}: {what_to_do}"


def trim() -> None:
    """Return what was freed: the C library else keeps the holes between what is in use."""
    with contextlib.suppress(OSError, AttributeError):  # only the GNU C library has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextlib.contextmanager
def returning_buffers() -> Iterator[None]:
    """Inside, buffers of more than a megabyte go back to the system as soon as they are freed.

    Else the C library learns from the first of them to take such buffers from its heaps, one heap
    for each thread, where the holes between them add up. Afterwards it does so again.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # only the GNU C library has it
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _ADAPTED)
        mallopt(_M_TRIM_THRESHOLD, 2 * _ADAPTED)
