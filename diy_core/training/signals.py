"""SIGTERM, SIGHUP and Ctrl-C: finish what is under way, save, and leave."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """While it is entered, SIGTERM, SIGHUP and SIGINT are only remembered, for the loop to look at.

    After the first signal Ctrl-C has its plain effect: the system ends the process at once, also
    where Python is waiting for a library. What is lost then is what kill -9 would lose.

    Args:
        report: is told what the signal led to.

    Attributes:
        received: the signal that arrived first, or None.
    """

    def __init__(self, report: Callable[[str], None]) -> None:
        self.received: signal.Signals | None = None
        self._report = report
        self._before: dict[signal.Signals, Any] = {}
        self._answer = "leaving as soon as everything is loaded, before the next step"

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that such a signal ended: 128 and its number, or 0."""
        return 0 if self.received is None else 128 + self.received

    @contextlib.contextmanager
    def answering(self, answer: str) -> Iterator[None]:
        """Inside, this is what a signal leads to, such as `saving and leaving after this step`."""
        before, self._answer = self._answer, answer
        try:
            yield
        finally:
            self._answer = before

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in _SIGNALS:
                # Under nohup the end of the terminal is none of the run's business.
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            self._report(
                f"{self.received.name}: {self._answer} (Ctrl-C leaves at once, without saving)"
            )
