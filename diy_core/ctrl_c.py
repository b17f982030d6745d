"""Ctrl-C while a program starts: its imports take seconds, and there is nothing to save yet."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def plain_ctrl_c() -> Iterator[None]:
    """Inside, Ctrl-C ends the process at once and without a word, as in any program.

    Python would raise KeyboardInterrupt wherever it stands: among imports that is a page of
    traceback, and in a callback of JAX's garbage collection nobody hears of it.
    """
    main = threading.current_thread() is threading.main_thread()  # others cannot set handlers
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # it is ignored in the background of a script, or somebody's own
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
