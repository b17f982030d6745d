"""A server that forks `parity` commands: warm, cheap to start, and free to be killed.

Importing both frameworks takes seconds. The server imports them once and starts neither: JAX has no
threads yet, so that a fork of it can still run JAX. Run as a program it serves requests, a line of
JSON each; `ForkServer` is the other end.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.torture.common import ROOT, SHARD

_HUNG = 120.0  # seconds


@dataclasses.dataclass(frozen=True)
class Run:
    """How a command ended: its exit code, or minus the signal; seconds from the first line on."""

    code: int
    seconds: float
    output: str
    errors: str

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class ForkServer:
    """Runs commands in forks of a process that has imported everything.

    Args:
        prefix: what the server is started with, such as `unshare -m`.

    Raises:
        RuntimeError: it does not start.
    """

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.torture.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        if self._answer() != "ready":
            raise RuntimeError("the fork server did not start")

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    @property
    def root(self) -> Path:
        """The server's file system: another one where it has mounts of its own."""
        return Path(f"/proc/{self._process.pid}/root")

    def convert(
        self,
        source: Path,
        target: Path,
        kind: str,
        *,
        overwrite: bool,
        kill_after: float | None = None,
        file_limit: int | None = None,
    ) -> Run:
        """`parity convert`, killed after some seconds, or with a limit on the size of files."""
        argv = ["convert", str(source), str(target), "--to", kind]
        argv += ["--max-shard-size", f"{SHARD}B"] if kind == "hf" else []
        argv += ["--overwrite"] if overwrite else []
        return self._ask(argv=argv, kill_after=kill_after, file_limit=file_limit)

    def together(self, commands: Sequence[Sequence[str]]) -> list[Run]:
        """`parity` commands that run at the same time, each to its end."""
        return [Run(**one) for one in self._request(together=[list(argv) for argv in commands])]

    def shell(self, *command: str) -> Run:
        """Any other program, in the server's name space."""
        return self._ask(shell=command)

    def _ask(self, **request: Any) -> Run:
        return Run(**self._request(**request))

    def _request(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        if answer is None:
            raise RuntimeError("the fork server died")
        return answer

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


def _serve() -> None:
    # What parity imports when it is needed; without it, each fork would import that again.
    import rich.progress  # noqa: F401

    import diy_jax.orbax_store  # noqa: F401
    import parity.convert.formats  # noqa: F401
    from diy_core.checkpoints import interface

    # Small groups, so that there are moments between them: in one group all is read, then written.
    interface.groups.__defaults__ = (1 << 19,)
    warnings.simplefilter("ignore")  # JAX warns of every fork
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if command := request.get("shell"):
            done = subprocess.run(command, capture_output=True, text=True)
            run = Run(done.returncode, 0.0, done.stdout, done.stderr)
        elif commands := request.get("together"):
            forks = [_fork(argv, None) for argv in commands]
            print(json.dumps([dataclasses.asdict(_end(*fork, None)) for fork in forks]), flush=True)
            continue
        else:
            run = _end(*_fork(request["argv"], request["file_limit"]), request["kill_after"])
        print(json.dumps(dataclasses.asdict(run)), flush=True)


Pipes = tuple[int, int, int]  # to read: that it has begun, what it prints, its errors


def _fork(argv: list[str], file_limit: int | None) -> tuple[int, Pipes]:
    begun, output, errors = os.pipe(), os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.dup2(output[1], 1)
        os.dup2(errors[1], 2)
        for descriptor in (begun[0], *output, *errors):
            os.close(descriptor)
        _child(argv, begun[1], file_limit)
    for pipe in (begun, output, errors):
        os.close(pipe[1])
    return child, (begun[0], output[0], errors[0])


def _end(child: int, pipes: Pipes, kill_after: float | None) -> Run:
    begun, output, errors = pipes
    os.read(begun, 1)
    start = time.perf_counter()
    handle = os.pidfd_open(child)
    ended, _, _ = select.select([handle], [], [], _HUNG if kill_after is None else kill_after)
    if not ended:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    seconds = time.perf_counter() - start
    os.close(handle)
    texts = [_drain(pipe) for pipe in (output, errors)]
    os.close(begun)
    return Run(os.waitstatus_to_exitcode(status), seconds, *texts)


def _child(argv: list[str], begun: int, file_limit: int | None) -> None:
    code = 70
    try:
        from parity.__main__ import main

        if file_limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
        os.write(begun, b".")
        code = main(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 70
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _drain(descriptor: int) -> str:
    with os.fdopen(descriptor, "rb") as stream:  # at most what a pipe holds: the child is dead
        return stream.read().decode(errors="replace")


if __name__ == "__main__":
    _serve()
