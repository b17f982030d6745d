"""Where `diy-torch` and `diy-jax` begin.

Their frameworks take seconds to import: help, errors and `--print-config` come before that, and
commands that need no framework do without.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diy_core.commands.beginning import end_by_signals
from diy_core.commands.ctrl_c import plain_ctrl_c

if TYPE_CHECKING:
    from diy_core.commands.command_line import Commands


def diy_torch(argv: Sequence[str] | None = None) -> int:
    """The command `diy-torch`, of this process without `argv`; returns its exit code."""
    return _launch("diy_torch", argv)


def diy_jax(argv: Sequence[str] | None = None) -> int:
    """The command `diy-jax`, of this process without `argv`; returns its exit code."""
    return _launch("diy_jax", argv)


def _launch(package: str, argv: Sequence[str] | None) -> int:
    if argv is None:
        end_by_signals()
    from diy_core.commands.command_line import build_parser, run

    def load() -> Commands:
        with plain_ctrl_c():
            commands: Commands = importlib.import_module(f"{package}.commands").COMMANDS
        return commands

    return run(build_parser(package.replace("_", "-")), argv, load)
