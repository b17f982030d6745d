"""Standard error that nobody reads any more, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

LINES = """
import sys
from diy_core.system.standard_error import StandardError, complain
"""


def run(code: str, stderr: int | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LINES + code], stdout=subprocess.PIPE, stderr=stderr, text=True
    )


@pytest.fixture
def unread() -> Iterator[int]:
    """The writing end of a pipe that has lost its reader."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_a_line_is_written_where_somebody_reads() -> None:
    done = run("complain('a line')\ncomplain('another')", subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, "a line\nanother\n")


def test_without_a_reader_the_process_goes_on(unread: int) -> None:
    done = run("[complain('a line') for _ in range(3)]; print('done')", unread)
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_what_others_print_is_no_error_either(unread: int) -> None:
    print_ = "print('a line', file=sys.stderr, flush=True)"
    assert run(print_, unread).returncode != 0
    assert run(f"complain('a line'); {print_}; print('done')", unread).stdout == "done\n"


def test_after_the_first_failure_there_is_no_descriptor(unread: int) -> None:
    code = """
stream = StandardError()
assert stream.fileno() == 2
stream.write("a line\\n"), stream.flush(), stream.write("a line\\n")
try:
    stream.fileno()
except OSError as error:
    print(error, stream.isatty(), stream.encoding)
"""
    assert run(code, unread).stdout == "nobody reads standard error False utf-8\n"


@pytest.mark.parametrize("none", ["sys.stderr = None", "sys.stderr.close()"])
def test_a_process_without_standard_error_goes_on(none: str) -> None:
    assert run(f"{none}; complain('a line'); print('done')", None).stdout == "done\n"


def test_what_would_steer_a_terminal_is_written_as_an_escape() -> None:
    code = r"complain('a\x1b[2J\r\x9b\x00b\tc\n\u00fc \u4f60 \U0001f600')"
    assert run(code, subprocess.PIPE).stderr == "a\\x1b[2J\\r\\x9b\\x00b\tc\nü 你 😀\n"
