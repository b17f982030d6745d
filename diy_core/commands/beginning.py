"""What a program of this project does before all else: it lets Ctrl-C end it without a word.

Imports take tenths of a second, those of a framework seconds, and Python raises KeyboardInterrupt
wherever it stands: that is a page of traceback. Where the packages are imported by somebody else's
program, signals are that program's.
"""

from __future__ import annotations

import signal
import sys

_SCRIPTS = ("diy-torch", "diy-jax", "parity")
_MODULES = ("diy_torch", "diy_jax", "parity")  # of `python -m`


def is_program() -> bool:
    """Whether this process was started as one of the programs, not by a child or an import."""
    given = sys.orig_argv[len(sys.orig_argv) - len(sys.argv) :]
    if not sys.argv or len(given) != len(sys.argv):
        return False
    if sys.argv[0] == "-m":  # while Python looks for the module; it may stand behind an option, too
        module = given[0].rpartition("-m")[2] if given[0].startswith("-") else given[0]
        return module.removesuffix(".__main__") in _MODULES
    if given[0] != sys.argv[0]:  # a process of multiprocessing has the arguments of its parent
        return False
    name = sys.argv[0].replace("\\", "/").rpartition("/")[2]
    return name.removesuffix(".exe").removesuffix("-script.py") in _SCRIPTS


def end_by_signals() -> None:
    """From now on Ctrl-C ends this process by the system, unless it is ignored, as in a script's
    background.

    For programs alone: what is imported may not have it so.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if is_program():
    end_by_signals()
