"""A program that runs as a user who may do less than root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = 65534
root_alone = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
_IMPORTS = """
import os, sys
from pathlib import Path
from diy_core.checkpoints.atomic import atomic_directory, atomic_file
folder = Path(sys.argv[1])
"""
_BECOMES = f"""
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
"""


def run_as_nobody(program: str, folder: Path, before: str = "") -> str:
    """What a program prints that has `folder`, which all can reach, and our writers.

    Args:
        program: it.
        folder: the other user may not read where Python's own modules are.
        before: what it begins with as root.
    """
    done = subprocess.run(
        [sys.executable, "-c", f"{_IMPORTS}\n{before}\n{_BECOMES}\n{program}", str(folder)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
