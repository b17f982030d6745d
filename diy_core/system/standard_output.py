"""Standard output: what it cannot show is written as an escape; work that is done stays done.

A reader that goes away, as `head` does, changes no exit code: 1 of `parity diff` means that two
checkpoints differ, and a check that is under way still writes its record.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from diy_core.system.standard_error import complain


def escape_what_cannot_be_shown() -> None:
    """Have both streams write characters that their encoding lacks as escapes, such as `\\xe8`.

    A name that the terminal's encoding lacks must not end the command that names it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not a text file, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


class _Pipe(io.FileIO):
    """A descriptor that is led nowhere once its reader is gone."""

    is_read = True

    def write(self, data: Any) -> int:
        """Write, if somebody reads; returns how many bytes are dealt with."""
        try:
            return super().write(data)
        except BrokenPipeError:
            self.is_read = False
            _lead_nowhere(self.fileno())
            return memoryview(data).nbytes


class _Closed(io.RawIOBase):
    """Standard output of a process that was started without one, as by `>&-`."""

    def writable(self) -> bool:
        """It looks like any other, until it is written to."""
        return True

    def write(self, data: Any) -> int:
        """Refuse.

        Raises:
            OSError: always; `print` to a stream that is None would lose the text silently.
        """
        raise OSError("standard output is closed: give it a place to go to, such as a file")


def outlive_reader() -> None:
    """From now on it is not an error of this process that nobody reads its standard output.

    To have none that could be read is one, wherever something is written to it.
    """
    stream = sys.stdout
    if stream is None:
        sys.stdout = io.TextIOWrapper(_Closed(), "utf-8", write_through=True)
        return
    buffer = stream.buffer if isinstance(stream, io.TextIOWrapper) else None
    if not isinstance(buffer, (io.BufferedWriter, io.FileIO)):
        return  # somebody's own, in this process
    stream.flush()
    pipe = _Pipe(stream.fileno(), "wb", closefd=False)
    unbuffered = isinstance(buffer, io.FileIO)  # as PYTHONUNBUFFERED has it
    sys.stdout = io.TextIOWrapper(
        pipe if unbuffered else io.BufferedWriter(pipe),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=bool(stream.line_buffering),
        write_through=unbuffered,
    )


def is_read() -> bool:
    """Whether standard output has its reader, as far as was seen when it was last written to."""
    buffer = getattr(sys.stdout, "buffer", None)
    pipe = getattr(buffer, "raw", buffer)
    return not isinstance(pipe, _Pipe) or pipe.is_read


def show(text: str) -> None:
    """Print what a command was asked for, such as its help.

    Raises:
        OSError: it cannot be written.
    """
    try:
        print(text, flush=True)
    except OSError:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            _lead_nowhere(sys.stdout.fileno())
        raise


def announce(text: str) -> None:
    """Print what a command has done, which stays done also where that cannot be printed.

    Where its disk is full, the text goes to standard error.
    """
    try:
        print(text, flush=True)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            _lead_nowhere(sys.stdout.fileno())
        complain(f"{text}\nnote: this was done, and could not be written to its place: {error}")


def _lead_nowhere(descriptor: int) -> None:
    """What is still in the buffer must be no error at the end of the process either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
