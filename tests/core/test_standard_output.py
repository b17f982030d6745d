"""A command that did its work says so, or stays quiet; it never fails for the saying."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

_GOES_ON = """
import sys
from rich.console import Console
from diy_core.system.standard_output import is_read, outlive_reader
outlive_reader()
before = is_read()
for i in range(3):
    print("a line", flush=True)
    Console().print("and another")
sys.stdout.buffer.write(b"bytes" * 100000)
print(before, is_read(), file=sys.stderr)
print("the last", end="")
raise SystemExit(3)
"""
_SAYS = """
import sys
from diy_core.system.standard_output import announce, escape_what_cannot_be_shown
escape_what_cannot_be_shown()
announce("mod\\u00e8le \\udce8 written")
announce("and another")
"""


def run(stdout: int, program: str = _SAYS, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
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


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_changes_no_exit_code(unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    done = run(write, _GOES_ON, PYTHONUNBUFFERED=unbuffered)
    os.close(write)
    assert (done.returncode, done.stderr) == (3, "True False\n")


def test_a_reader_that_stays_gets_all() -> None:
    done = run(subprocess.PIPE, _GOES_ON)
    assert (done.returncode, done.stderr) == (3, "True True\n")
    assert done.stdout == "a line\nand another\n" * 3 + "bytes" * 100000 + "the last"


def test_a_full_disk_is_an_error_all_the_same() -> None:
    with open("/dev/full", "wb") as full:
        done = run(full.fileno(), _GOES_ON, PYTHONUNBUFFERED="")
    assert done.returncode in (1, 120)  # 120: the interpreter's own, at its end
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize("program", ["diy-torch", "diy-jax", "parity"])
@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_that_nobody_reads_is_no_failure(program: str, words: list[str]) -> None:
    start = "parity.__main__:main" if program == "parity" else f"diy_core.commands.launch:{program}"
    module, _, function = start.replace("-", "_").partition(":")
    read, write = os.pipe()
    os.close(read)
    code = f"import sys; sys.argv = {[program, *words]}; from {module} import *; {function}()"
    done = run(write, code)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("place", ["/dev/full", "&-"])
@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("parity.__main__:main", "parity check --help"),
        ("parity.__main__:main", "parity faults --list"),
        ("diy_core.commands.launch:diy_torch", "diy-torch train --help"),
        ("diy_core.commands.launch:diy_jax", "diy-jax --version"),
    ],
)
def test_what_was_asked_for_and_cannot_be_written_is_an_error(
    start: str, words: str, place: str
) -> None:
    module, _, function = start.partition(":")
    code = f"import sys; sys.argv = {words.split()}; from {module} import *; sys.exit({function}())"
    line = f"{shlex.join([sys.executable, '-c', code])} >{place}"
    done = subprocess.run(
        ["sh", "-c", line], stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 2
    why = "standard output is closed: give" if place == "&-" else "the disk: No space left"
    assert done.stderr.startswith(f"{words.rpartition(' ')[0]}: {why}")
    assert done.stderr.count("\n") == 1
