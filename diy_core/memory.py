"""Giving freed memory back to the system."""

from __future__ import annotations

import contextlib
import ctypes


def trim() -> None:
    """Return what was freed: the C library else keeps the holes between what is in use."""
    with contextlib.suppress(OSError, AttributeError):  # only the GNU C library has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
