"""Descriptors that a forked child must not share: a lock lives as long as anybody has it open."""

from __future__ import annotations

import contextlib
import functools
import os

_HELD: set[int] = set()


def close_in_children(descriptor: int) -> None:
    """A forked child would share the lock, and hold it for as long as it outlives its parent."""
    _register()
    _HELD.add(descriptor)


def forget(descriptor: int) -> None:
    """Its number may soon be that of another file."""
    _HELD.discard(descriptor)


@functools.cache
def _register() -> None:
    os.register_at_fork(after_in_child=_close)


def _close() -> None:
    for descriptor in _HELD:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _HELD.clear()
