"""The directory of a run: who may write into it, and what was run there.

config.yaml      the config as resolved: defaults, file and command line together
metrics.jsonl    what the run computed, a line for each step
evaluations.jsonl  the same for each evaluation
timings.jsonl    how fast it was
tensorboard/     both as TensorBoard's events
loss.png         the curves
checkpoints/     a directory for each checkpoint, named after its step
model/           config.json of the model, and its tokenizer where it has one
data/            the prepared tokens, where the config names a text; validation/ likewise
.lock            held by the process that runs, with its number and its machine
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from diy_core.checkpoints.atomic import atomic_file
from diy_core.disk import DiskFull, naming_full_disks, require_room
from diy_core.errors import CheckpointError
from diy_core.training.config import TrainConfig, as_dict
from diy_core.training.resuming import differences
from diy_core.training.yaml_file import read_config_of_run

_ROOM = 1 << 20  # bytes, for the config and the first lines of metrics
_HELD: set[int] = set()  # descriptors with a lock
_CONFIG, _LOCK, _CHECKPOINTS, _METRICS = "config.yaml", ".lock", "checkpoints", "metrics.jsonl"
# What a start that was killed may leave; and what a shell or a queue opens before a run begins.
_BEGUN = re.compile(
    rf"{_LOCK}|{_CHECKPOINTS}|\.{_CONFIG}\.tmp-[0-9a-f]{{8}}({_LOCK})?|.*\.(log|out|err)"
)


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies. Both stores put it there whole, by a rename."""
    return checkpoints / f"{step:08d}"


def whole_checkpoints(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints, rising; what is still being written has another name."""
    found = checkpoints.iterdir() if checkpoints.is_dir() else ()
    steps = (int(item.name) for item in found if item.name.isdecimal() and item.is_dir())
    return sorted(step for step in steps if checkpoint_path(checkpoints, step).is_dir())


def require_run_directory(path: str | Path) -> None:
    """Raise for a place where no run can be, or where something else than a run is.

    Raises:
        CheckpointError: it is a file or lies in one, or is a directory with files that no run made.
    """
    path = Path(path)
    there = next((place for place in (path, *path.parents) if place.exists()), path)
    if there.exists() and not there.is_dir():
        raise CheckpointError(
            there, "is a file, and a run needs a directory: choose another run_dir"
        )
    names = {item.name for item in path.iterdir()} if path.is_dir() else set()
    is_run = (path / _CONFIG).is_file() and names & {_LOCK, _CHECKPOINTS, _METRICS}
    if not is_run and (foreign := sorted(n for n in names if not _BEGUN.fullmatch(n))):
        raise CheckpointError(
            path,
            f"exists, is not empty (it has {foreign[0]}) and is no training run: choose another "
            "run_dir",
        )


class RunDirectory:
    """A run directory; while it is entered, no other process can enter it.

    Args:
        path: made if it does not exist.
        report: is told what the user should know.
        doing: is told what goes on while it takes seconds.
    """

    def __init__(
        self,
        path: str | Path,
        report: Callable[[str], None],
        doing: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.path = Path(path)
        self.config_file = self.path / _CONFIG
        self.metrics_file = self.path / _METRICS
        self.evaluations_file = self.path / "evaluations.jsonl"
        self.timings_file = self.path / "timings.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.plot_file = self.path / "loss.png"
        self.checkpoints = self.path / _CHECKPOINTS
        self.model = self.path / "model"
        self.data = self.path / "data"
        self.validation = self.path / "validation"
        self.doing = doing
        self._report = report
        self._lock = -1

    def __enter__(self) -> RunDirectory:
        """Take the lock, which the system drops when the process ends, however it does.

        Raises:
            ValueError: another process holds it; the message names it.
            CheckpointError: of `require_run_directory`.
        """
        require_run_directory(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 1000, 0).decode("utf-8", "replace").strip()
            self._release()
            raise ValueError(
                f"{self.path} is in use by {holder or 'another process'}: wait for it, or choose "
                "another run_dir"
            ) from None
        except OSError as error:
            self._report(
                f"{self.path} cannot be locked ({error.strerror}): see to it that no other process "
                "trains there"
            )
        _close_in_children(self._lock)
        with contextlib.suppress(DiskFull), naming_full_disks(self.path):
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._release()

    def _release(self) -> None:
        _HELD.discard(self._lock)
        os.close(self._lock)

    def begin(self, config: TrainConfig, *, resume: bool) -> bool:
        """Decide between a new run and going on with the one in the directory; keep the config.

        A run without a whole checkpoint has nothing to go on with and is begun anew. One that has
        not taken a step either, as the start failed, is not in the way of another.

        Args:
            config: what shall be run.
            resume: False refuses a directory in which something was run.

        Returns:
            Whether there is a checkpoint to go on from.

        Raises:
            ValueError: the directory holds a run and `resume` is False, or the run was started with
                another config.
            CheckpointError: its config cannot be read.
            DiskFull: there is no room for the first files.
        """
        going_on = bool(whole_checkpoints(self.checkpoints))
        if not resume and (going_on or _has_lines(self.metrics_file)):
            raise ValueError(
                f"{self.path} holds a run: --resume auto goes on with it; else choose another "
                "run_dir"
            )
        if going_on and (different := differences(self.read_config(), as_dict(config))):
            listed = "\n".join(f"  {line}" for line in different)
            raise ValueError(
                f"{self.path} was started with another config, and would become another run:\n"
                f"{listed}\nGive the old values, or choose another run_dir"
            )
        require_room(self.path, _ROOM)
        self.checkpoints.mkdir(exist_ok=True)
        with atomic_file(self.config_file) as file:
            text = yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)
            file.write_text(text, encoding="utf-8")
        return going_on

    def read_config(self) -> dict[str, Any]:
        """What `config.yaml` holds.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        return read_config_of_run(self.config_file)


def _has_lines(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _close_in_children(descriptor: int) -> None:
    """A forked child would share the lock, and hold it for as long as it outlives its parent."""
    _register()
    _HELD.add(descriptor)


@functools.cache
def _register() -> None:
    os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    for descriptor in _HELD:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _HELD.clear()
