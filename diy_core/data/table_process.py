"""Parquet files are read in a process of their own, with a limit to its memory.

pyarrow is C++: where it gets no memory, or finds what nobody expected, it may end the process that
it runs in. So that is another one, and its end is an error of the file. It starts with the first
file (0.2 s, most of it pyarrow, which this process need not load) and serves all others.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import weakref
from typing import Any

from diy_core.data import table_server as server

_BUFFER = 1 << 20  # bytes that one side writes before the other one must read
_NO_MEMORY = (signal.SIGABRT, signal.SIGKILL)  # a library, or the system, ends what needs too much


class TableProcess:
    """One that reads parquet files. Use `borrowed`, as starting it takes a while."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", server.__file__],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process
            )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        self.alive, self.pid = True, self._process.pid
        _STARTED.add(self)
        with contextlib.suppress(ConnectionError):
            self._send(list(map(os.path.abspath, sys.path)))

    def ask(self, name: str, *arguments: Any, file: int | None = None) -> Any:
        """What a method of the server's table returns.

        Args:
            name: of the method.
            arguments: plain data.
            file: a descriptor, the last argument there.

        Raises:
            MemoryError: it needs more memory than it may have.
            ChildProcessError: the process ended.
            Exception: what the method raised.
        """
        try:
            with contextlib.suppress(ConnectionError):  # then it does not answer either
                self._send((name, *arguments), file)
            kind, content = self._answer()
        except BaseException:  # Ctrl-C as well: the next answer would be to this request
            self.stop()
            raise
        if kind == server.NO_MEMORY:
            self.stop()
            raise MemoryError
        if kind == server.ERROR:
            raise pickle.loads(content)
        return pickle.loads(content)

    def runs(self) -> bool:
        """Whether it can be asked; the system may have ended it."""
        return self.alive and self._process.poll() is None

    def stop(self) -> None:
        """End the process, if it runs."""
        if self.alive:
            self._process.kill()
            self._process.wait()
        self.forget()

    def give_back(self) -> None:
        """Let it close its file, and keep it for the next that borrows one."""
        if not self.alive:
            return
        try:
            self.ask("close")
        except (OSError, MemoryError):
            self.stop()
        else:
            _IDLE.append(self)

    def forget(self) -> None:
        """It is over, or no child of this process, which must not wait for it."""
        self.alive = False
        self._process.returncode = self._process.returncode or 0
        with contextlib.suppress(OSError):
            self._socket.close()

    def _send(self, request: Any, file: int | None = None) -> None:
        content = pickle.dumps(request, pickle.HIGHEST_PROTOCOL)
        files = [] if file is None else [file]
        socket.send_fds(self._socket, [server.HEAD.pack(0, len(content))], files)
        self._socket.sendall(content)

    def _exactly(self, count: int) -> bytearray:
        content = bytearray(count)
        rest = memoryview(content)
        while rest:
            if not (received := self._socket.recv_into(rest, 0, socket.MSG_WAITALL)):
                raise EOFError
            rest = rest[received:]
        return content

    def _answer(self) -> tuple[int, bytearray]:
        with contextlib.suppress(ConnectionError, EOFError):
            kind, length = server.HEAD.unpack(self._exactly(server.HEAD.size))
            return kind, self._exactly(length)
        code = -self._process.wait()
        if code in _NO_MEMORY:
            raise MemoryError
        how = f"with {signal.Signals(code).name}" if code > 0 else f"(exit code {-code})"
        raise ChildProcessError(f"the process that read it ended {how}")


_IDLE: list[TableProcess] = []
_STARTED: weakref.WeakSet[TableProcess] = weakref.WeakSet()


def borrowed() -> TableProcess:
    """A process that nobody else uses, until it is given back."""
    while _IDLE:
        if (process := _IDLE.pop()).runs():
            return process
        process.stop()
    return TableProcess()


@atexit.register
def _stop_all() -> None:
    for process in list(_STARTED):
        process.stop()


def _forget_all() -> None:
    for process in list(_STARTED):
        process.forget()
    _IDLE.clear()


os.register_at_fork(after_in_child=_forget_all)
