"""Where `diy-torch` and `diy-jax` begin: their frameworks take seconds to import."""

from __future__ import annotations

import contextlib
import importlib
import signal
import threading
from collections.abc import Callable, Iterator

from diy_core.standard_error import complain

EXIT_BAD_INPUT = 2


def diy_torch() -> int:
    """The command `diy-torch`; returns its exit code."""
    return _launch("diy_torch", "torch")


def diy_jax() -> int:
    """The command `diy-jax`; returns its exit code."""
    return _launch("diy_jax", "jax")


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


def _launch(package: str, extra: str) -> int:
    with plain_ctrl_c():
        try:
            main: Callable[[], int] = importlib.import_module(f"{package}.__main__").main
        except ModuleNotFoundError as error:
            program = package.replace("_", "-")
            complain(f"{program}: {error}: pip install 'diy-lm[{extra}]' has what it needs")
            return EXIT_BAD_INPUT
    return main()
