"""Freed buffers go back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

from diy_core.commands.command_line import Commands, build_parser, run

_HOLES = """
import contextlib, sys
import numpy as np
from diy_core.system.memory import returning_buffers, trim

def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

array = np.ones(30 << 20, np.uint8)
del array  # from here the library takes buffers up to this size from its heap
before = resident()
with returning_buffers() if sys.argv[1] == "inside" else contextlib.nullcontext():
    held = [(np.ones(2 << 20, np.uint8), np.ones(2000, np.uint8)) for _ in range(50)]
    small = [pair[1] for pair in held]  # each lies behind a large one, and stays
    assert resident() - before > 90e6
    del held
    left = resident() - before
if sys.argv[1] == "trim":
    trim()
    left = resident() - before
print(left)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and is about the GNU C library")
def test_freed_buffers_are_returned() -> None:
    def left(how: str) -> int:
        command = [sys.executable, "-c", _HOLES, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert left("outside") > 20e6  # what it is for
    assert left("inside") < 5e6
    assert left("trim") < 5e6


def test_a_command_that_needs_more_memory_than_there_is_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load() -> Commands:
        raise MemoryError("Unable to allocate 8 GiB")

    assert run(build_parser("diy-jax"), ["export", "run", "--out", "x"], load) == 2
    assert capsys.readouterr().err == (
        "diy-jax export: not enough memory (Unable to allocate 8 GiB): end other programs, or give "
        "it less to do at once\n"
    )
