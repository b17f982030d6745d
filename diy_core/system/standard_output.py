"""Standard output: what it cannot show is written as an escape; work that is done stays done."""

from __future__ import annotations

import contextlib
import os
import sys

from diy_core.standard_error import complain


def escape_what_cannot_be_shown() -> None:
    """Have both streams write characters that their encoding lacks as escapes, such as `\\xe8`.

    A name that the terminal's encoding lacks must not end the command that names it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not a text file, or closed
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def announce(text: str) -> None:
    """Print what a command has done, which stays done also where that cannot be printed.

    Where nobody reads standard output, or its disk is full, the text goes to standard error.
    """
    try:
        print(text, flush=True)
    except (OSError, ValueError) as error:
        _lead_nowhere()
        complain(f"{text}\nnote: this was done, and could not be written to its place: {error}")


def _lead_nowhere() -> None:
    """What is still in the buffer must be no error at the end of the process either."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
