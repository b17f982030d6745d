"""Ctrl-C, SIGTERM and SIGHUP while a command works: what it began is undone, and it leaves.

Such a signal is raised as `Stopped`, so that everything that is open closes itself, and nothing is
left behind. Python raises between any two instructions, so two things are seen to here:

* Some steps must not end in their middle, such as naming a place and knowing that it is ours:
  `uninterrupted` puts the signal off until they are done.
* What is raised in a callback of a garbage collector or in a finalizer is printed and lost. The
  signal is sent again then.
* A module that is interrupted while it is imported says that it is broken, or takes the
  interpreter with it. The signal is sent again, until the import is done.

A signal that arrives during the clean-up is ignored, but for a Ctrl-C that comes late: it ends the
process at once, as what hangs may never end.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, NoReturn

from diy_core.system.standard_error import complain

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PATIENCE = 2.0  # seconds from the first signal to a Ctrl-C that means it
_PAUSE = 0.02  # seconds until a signal is sent again
_IMPORTS = "<frozen importlib._bootstrap>"  # where Python's own frames of an import are


class Stopped(KeyboardInterrupt):
    """A signal that ends the command.

    Args:
        number: of the signal.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class Stop:
    """While it is entered, the signals are raised in the main thread, as `Stopped`.

    It also takes the place of what a library made of it.

    Args:
        for_good: this is the work of the whole process: what follows is not to be interrupted any
            more where a signal came, and else is ended by the system.

    Attributes:
        received: the signal that came first, or None.
    """

    def __init__(self, *, for_good: bool = False) -> None:
        self.received: signal.Signals | None = None
        self._for_good, self._process = for_good, os.getpid()
        self._before: dict[signal.Signals, Any] = {}
        self._hook = sys.unraisablehook
        self._since, self._due = 0.0, False
        self._again: threading.Timer | None = None
        self.held = 0

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            self._hook, sys.unraisablehook = sys.unraisablehook, self._lost
            _ACTIVE.append(self)
            for number in STOPPING:
                # Ignored in the background of a script, or under nohup; or somebody's own.
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self.receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._again is not None:
            self._again.cancel()
        after = None
        if self._for_good:
            after = signal.SIG_DFL if self.received is None else signal.SIG_IGN
        for number, before in self._before.items():
            signal.signal(number, before if after is None else after)
        if self in _ACTIVE:
            _ACTIVE.remove(self)
            if sys.unraisablehook == self._lost:  # else somebody's own came after it, and stays
                sys.unraisablehook = self._hook
        if self.received is not None and not isinstance(error, Stopped):
            raise Stopped(self.received) from error

    def receive(self, number: int, frame: FrameType | None) -> None:
        """The handler of the signals."""
        if os.getpid() != self._process:  # a child that was forked is not this command
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
            self._due = True
        elif self._due:  # put off, or sent again
            pass
        elif number == signal.SIGINT and time.monotonic() - self._since > _PATIENCE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self._due and _imports(frame):
            self._send_again(number)
        else:
            self.raise_if_due()

    def raise_if_due(self) -> None:
        """Raise what was put off."""
        if self._due and not self.held and self.received is not None:
            self._due = False
            raise Stopped(self.received)

    def _lost(self, found: Any) -> None:
        if self not in _ACTIVE or not isinstance(found.exc_value, Stopped):
            self._hook(found)
            return
        self._due = True
        self._send_again(found.exc_value.number)

    def _send_again(self, number: int) -> None:
        main = threading.main_thread().ident
        assert main is not None
        if self._again is not None:
            self._again.cancel()
        self._again = threading.Timer(_PAUSE, signal.pthread_kill, (main, number))
        self._again.daemon = True
        self._again.start()


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != _IMPORTS:
        frame = frame.f_back
    return frame is not None


_ACTIVE: list[Stop] = []


class uninterrupted:
    """Inside, no signal is raised; it is afterwards. For steps that take no time."""

    def __enter__(self) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._stops = list(_ACTIVE) if main else []
        for stop in self._stops:
            stop.held += 1

    def __exit__(self, *error: object) -> None:
        for stop in self._stops:
            stop.held -= 1
        for stop in self._stops:
            stop.raise_if_due()


def code_of(error: KeyboardInterrupt) -> int:
    """The exit code of a command that was interrupted: what a shell says of such a process."""
    return 128 + (error.number if isinstance(error, Stopped) else signal.SIGINT)


def leave(words: str, error: KeyboardInterrupt, *, for_good: bool, echo: str = "") -> int:
    """Say that a command was interrupted; returns its exit code, or ends the process with it.

    Args:
        words: the command.
        error: what ended it.
        for_good: end the process.
        echo: comes first after Ctrl-C, of which a terminal shows `^C`.
    """
    by = error.number if isinstance(error, Stopped) else signal.SIGINT
    ctrl_c = by == signal.SIGINT
    complain(f"{echo}{words}: interrupted" if ctrl_c else f"{words}: interrupted by {by.name}")
    return end_early(code_of(error), for_good=for_good)


def end_early(code: int, *, for_good: bool) -> int:
    """End the process of a command that ends before its work does; else return its exit code.

    A framework may still compute in threads of its own, which must not outlive the interpreter
    that they work for: so nothing of it is torn down.

    Args:
        code: the exit code.
        for_good: end the process.
    """
    if for_good:
        leave_at_once(code)
    return code


def leave_at_once(code: int) -> NoReturn:
    """End the process with nothing but its output written."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):  # nobody reads it, or it is closed
            continue
    os._exit(code)
