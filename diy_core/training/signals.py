"""SIGTERM and Ctrl-C: finish the step, save, and leave."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class Interruption:
    """While it is entered, SIGTERM and SIGINT are only remembered, for the loop to look at.

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

    @property
    def exit_code(self) -> int:
        """What a shell reports of a process that such a signal ended: 130 or 143; 0 for none."""
        return 0 if self.received is None else 128 + self.received

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
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
                f"{self.received.name}: saving and leaving after this step "
                "(Ctrl-C leaves at once, without saving)"
            )
