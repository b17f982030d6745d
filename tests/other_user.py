"""A program that runs as a user who may do less than root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = 65534
root_alone = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
_BECOMES = f"""
import os, sys
from pathlib import Path
from diy_core.checkpoints.atomic import atomic_directory, atomic_file
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
"""


def run_as_nobody(program: str, folder: Path) -> str:
    """What a program prints that has `folder`, which all can reach, and our writers."""
    done = subprocess.run(
        [sys.executable, "-c", f"{_BECOMES}\nfolder = Path(sys.argv[1])\n{program}", str(folder)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
