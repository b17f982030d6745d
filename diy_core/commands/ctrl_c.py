"""Ctrl-C while a program starts: its imports take seconds, and there is nothing to save yet."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

from diy_core.system.stopping import STOPPING, Stop


@contextlib.contextmanager
def plain_ctrl_c() -> Iterator[None]:
    """Inside, Ctrl-C ends the process at once and without a word, as in any program.

    Python would raise KeyboardInterrupt wherever it stands: among imports that is a page of
    traceback, and in a callback of JAX's garbage collection nobody hears of it. What the command
    itself does about SIGTERM and SIGHUP waits, too.
    """
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # others cannot set handlers
        for number in STOPPING:
            if _is_raised(signal.getsignal(number)):
                before[number] = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_raised(handler: Any) -> bool:
    """Whether a handler raises where Python stands; others are ignored, or somebody's own."""
    by_us = isinstance(getattr(handler, "__self__", None), Stop)
    return by_us or handler is signal.default_int_handler
