"""A command that did its work says so, or stays quiet; it never fails for the saying."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_SAYS = """
import sys
from diy_core.system.standard_output import announce, escape_what_cannot_be_shown
escape_what_cannot_be_shown()
announce("mod\\u00e8le \\udce8 written")
announce("and another")
"""


def run(stdout: int, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _SAYS],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | environment,
    )


@pytest.mark.parametrize("encoding", ["ascii:strict", "utf-8:strict"])
def test_what_the_encoding_lacks_is_an_escape(encoding: str) -> None:
    done = run(subprocess.PIPE, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\udce8 written" in done.stdout
    assert "and another" in done.stdout


def test_where_nothing_can_be_printed_it_is_said_on_standard_error() -> None:
    with open("/dev/full", "wb") as full:
        done = run(full.fileno())
    assert done.returncode == 0
    assert "and another" in done.stderr or "written" in done.stderr
    assert "this was done, and could not be written to its place: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_reader_that_is_gone_is_no_failure() -> None:
    read, write = os.pipe()
    os.close(read)
    done = run(write)
    os.close(write)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
