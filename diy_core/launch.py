"""Where `diy-torch` and `diy-jax` begin.

Their frameworks take seconds to import: help, errors and `--print-config` come before that, and
commands that need no framework do without.
"""

from __future__ import annotations

import importlib

from diy_core.command_line import Commands, build_parser, run
from diy_core.ctrl_c import plain_ctrl_c


def diy_torch() -> int:
    """The command `diy-torch`; returns its exit code."""
    return _launch("diy_torch")


def diy_jax() -> int:
    """The command `diy-jax`; returns its exit code."""
    return _launch("diy_jax")


def _launch(package: str) -> int:
    def load() -> Commands:
        with plain_ctrl_c():
            commands: Commands = importlib.import_module(f"{package}.__main__").COMMANDS
        return commands

    return run(build_parser(package.replace("_", "-")), None, load)
