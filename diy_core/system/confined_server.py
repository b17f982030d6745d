"""The process of `confined`: runs the functions of one Python file, one call after the other.

It is run by its path, with no package around it, so that it starts in 50 ms.
"""

import contextlib
import functools
import json
import pickle
import resource
import runpy
import signal
import struct
import sys
from typing import Any, BinaryIO

TEXT, VALUE, ERROR, TOO_LONG, NO_MEMORY = range(5)  # what an answer is
_HEAD = struct.Struct("<BQ")


def main() -> None:
    """Serve until standard input ends."""
    # Pickles come from the process that started this one, never from a file; answers are JSON.
    calls, answers = sys.stdin.buffer, sys.stdout.buffer
    paths, file = pickle.load(calls)
    sys.path[:] = paths
    functions = runpy.run_path(file)
    with contextlib.suppress(ValueError, OSError):  # a crash is no reason for a core file
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            name, arguments, seconds, nbytes, most = pickle.load(calls)
        except EOFError:
            return
        kind, content = _answer(functions[name], arguments, seconds, nbytes, most)
        _send(answers, kind, content)
        if kind == NO_MEMORY:  # what took it may still be held
            return


def _answer(
    function: Any, arguments: tuple[Any, ...], seconds: int, nbytes: int, most: int
) -> tuple[int, bytes]:
    signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends this process, also in C
    try:
        _limit_memory(nbytes)
        value, kind = function(*arguments), TEXT
        if not isinstance(value, str):
            value, kind = json.dumps(value), VALUE
        if len(value) > most:
            return TOO_LONG, b""
        return kind, value.encode("utf-8", "surrogatepass")
    except MemoryError:
        return NO_MEMORY, b""
    except Exception as error:  # what a program of others can raise is anything
        line = getattr(error, "lineno", None)
        names = [kind.__name__ for kind in type(error).__mro__]
        content = json.dumps([names, str(error)[:5000], line]).encode()
        return ERROR, content
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@functools.lru_cache(maxsize=1)
def _limit_memory(nbytes: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # some systems have no such limit
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, hard))


def _send(answers: BinaryIO, kind: int, content: bytes) -> None:
    answers.write(_HEAD.pack(kind, len(content)) + content)
    answers.flush()


if __name__ == "__main__":
    main()
