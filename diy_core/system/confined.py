"""Programs that came with a checkpoint, run in a process of their own with limits.

What a program computes cannot be bounded by looking at it, nor interrupted inside a library. So it
runs in a child, whose memory and processor time the operating system bounds:

    templates = Confined(path_of_a_python_file, "template")
    text = templates.call("write", source, names)

The child starts with the first call; a call costs about 100 microseconds more than it would here.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from diy_core.system import confined_server as server
from diy_core.system.limits import how_to_raise, limit

_HEAD = struct.Struct("<BQ")


class ConfinedError(ValueError):
    """A function raised something, or did more than it may.

    Attributes:
        kinds: names of the classes of what it raised, the nearest first; none: it did too much.
        line: of the program, where the error has one.
    """

    def __init__(self, text: str, kinds: tuple[str, ...] = (), line: int | None = None) -> None:
        super().__init__(text)
        self.kinds, self.line = kinds, line


class Confined:
    """The functions of one Python file, each call within limits.

    Args:
        file: it is run with nothing of this package around it; its functions return what JSON has.
        limits: `NAME_seconds`, `NAME_bytes` and `NAME_output` of `limits` hold.
    """

    def __init__(self, file: Path, limits: str) -> None:
        self._file, self._limits = file, limits
        self._forget()
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.close)

    def _forget(self) -> None:
        """A forked child starts a process of its own: this one answers its parent."""
        self._lock = threading.Lock()
        if process := getattr(self, "_process", None):
            process.returncode = 0  # it is not a child of this one, which must not wait for it
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    os.close(stream.fileno())
        self._process: subprocess.Popen[bytes] | None = None

    def call(self, name: str, *arguments: Any) -> Any:
        """What the function returns.

        Args:
            name: of the function.
            arguments: plain data.

        Raises:
            ConfinedError: what the function raised; or it took more time or memory than it may, or
                returned too much.
        """
        seconds, nbytes, most = (
            limit(f"{self._limits}_{what}") for what in ("seconds", "bytes", "output")
        )
        request = pickle.dumps((name, arguments, seconds, nbytes, most), pickle.HIGHEST_PROTOCOL)
        with self._lock:
            try:
                kind, content = self._exchange(request)
            except BaseException:  # Ctrl-C as well: the next answer would be to this call
                self._stop()
                raise
            if kind == server.NO_MEMORY:
                self._stop()
        if kind == server.NO_MEMORY:
            raise self._too_much("bytes", f"takes more than {nbytes >> 20} MB of memory")
        if kind == server.TOO_LONG:
            raise self._too_much("output", f"writes more than {most} characters")
        if kind == server.ERROR:
            kinds, text, line = json.loads(content)
            raise ConfinedError(text, tuple(kinds), line)
        text = content.decode("utf-8", "surrogatepass")
        return text if kind == server.TEXT else json.loads(text)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._stop()

    def _exchange(self, request: bytes) -> tuple[int, bytes]:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # then it does not answer either
            process.stdin.write(request)
            process.stdin.flush()
        head = process.stdout.read(_HEAD.size)
        if len(head) < _HEAD.size:
            raise self._ended(process.wait())
        kind, length = _HEAD.unpack(head)
        content = process.stdout.read(length)
        if len(content) < length:
            raise self._ended(process.wait())
        return kind, content

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", server.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process
        )
        assert self._process.stdin is not None
        pickle.dump((list(map(os.path.abspath, sys.path)), str(self._file)), self._process.stdin)
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.communicate()  # closes its streams and waits

    def _ended(self, code: int) -> ConfinedError:
        if code == -signal.SIGPROF:
            seconds = limit(f"{self._limits}_seconds")
            return self._too_much("seconds", f"takes more than {seconds} s of a processor")
        if code == -signal.SIGABRT:  # libraries end the process where they get no memory
            nbytes = limit(f"{self._limits}_bytes")
            return self._too_much("bytes", f"takes more than {nbytes >> 20} MB of memory")
        return ConfinedError(f"ended the process that ran it (exit code {code})")

    def _too_much(self, what: str, text: str) -> ConfinedError:
        return ConfinedError(f"{text}: {how_to_raise(f'{self._limits}_{what}')}")
