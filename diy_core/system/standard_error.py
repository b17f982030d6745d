"""Standard error that may go away: a pipe whose reader ended, a terminal that was closed."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import IO, TextIO, cast

from diy_core.system.held import named

_CONTROL = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]")


class StandardError:
    """The stream of standard error; from the first write that fails on, nothing is written.

    A run must not end because nobody reads what it says, as after Ctrl-C in `... 2>&1 | tee log`.
    """

    def __init__(self) -> None:
        self._stream: TextIO | None = sys.stderr

    @property
    def encoding(self) -> str:
        """Of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write, if somebody reads; returns the length of the text."""
        try:
            if self._stream is not None:
                self._stream.write(text)
        except (OSError, ValueError):  # the reader is gone; the stream was closed
            self._give_up()
        except RuntimeError:  # a signal came in the middle of another write
            pass
        return len(text)

    def flush(self) -> None:
        """Flush, if somebody reads."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._give_up()
        except RuntimeError:
            pass

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """The descriptor.

        Raises:
            OSError: it has none, or nobody reads.
        """
        if self._stream is None:
            raise OSError("nobody reads standard error")
        return self._stream.fileno()

    def _give_up(self) -> None:
        """Lead the descriptor nowhere: what others print there must be no error either."""
        stream, self._stream = self._stream, None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = stream.fileno()  # type: ignore[union-attr]
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def standard_error() -> IO[str]:
    """A `StandardError` for what wants a stream: it has all that rich asks of one."""
    return cast(IO[str], StandardError())


def complain(text: str) -> None:
    """Write a line to standard error, if somebody reads it.

    What a file had in it may steer a terminal: control characters are written as escapes.
    """
    stream = StandardError()
    shown = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], named(text))
    stream.write(f"{shown}\n")
    stream.flush()
