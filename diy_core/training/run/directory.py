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

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from diy_core.checkpoints.atomic import atomic_file
from diy_core.checkpoints.training_run import has_marks_of_run
from diy_core.errors import CheckpointError
from diy_core.system.children import close_in_children, forget
from diy_core.system.disk import require_room
from diy_core.system.held import HeldDirectory, with_names
from diy_core.training.checkpoints.files import whole_checkpoints
from diy_core.training.config import TrainConfig, as_dict
from diy_core.training.log.json_lines import refuse_own_link
from diy_core.training.protocols import TrainingError
from diy_core.training.run.allowed_changes import NOTHING, Allowed
from diy_core.training.run.lock import LOCK, take_lock
from diy_core.training.run.model import foreseen
from diy_core.training.run.resume import lines_of_differences
from diy_core.training.run.seal import (
    Change,
    changes_between,
    made_anew,
    newest_seal,
    refuse_changes,
    seal_of,
)
from diy_core.training.run.yaml_file import read_config_of_run

_ROOM = 1 << 20  # bytes, for the config and the first lines of metrics
_CONFIG, _CHECKPOINTS, _METRICS = "config.yaml", "checkpoints", "metrics.jsonl"
# What a start that was killed may leave; and what a shell or a queue opens before a run begins.
_BEGUN = re.compile(
    rf"{LOCK}|{_CHECKPOINTS}|\.({_CONFIG}|{LOCK})\.tmp-[0-9a-f]{{8}}(\.lock)?|.*\.(log|out|err)"
)


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
    named = (path / _CONFIG).is_file() and names & {LOCK, _CHECKPOINTS, _METRICS}
    is_run = named and has_marks_of_run(path)
    if not is_run and (foreign := sorted(n for n in names if not _BEGUN.fullmatch(n))):
        raise CheckpointError(
            path,
            f"exists, is not empty (it has {foreign[0]}) and is not a training run: choose another "
            "run_dir",
        )


class RunDirectory:
    """A run directory; while it is entered, no other process can enter it.

    What is locked is the directory and not its name. Inside, all paths below are ways to what was
    locked (`diy_core.system.held`): a run that is moved goes on where it is by then, and touches
    nothing of what takes its name.

    Args:
        path: made if it does not exist.
        report: is told what the user should know.
        doing: is told what goes on while it takes seconds.

    Attributes:
        path: as it was given.
        root: the way to it.
        made_anew: of `model` and `data`, what is made again as its options changed on purpose.
    """

    def __init__(
        self,
        path: str | Path,
        report: Callable[[str], None],
        doing: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.path = Path(path)
        self._lay_out(self.path)
        self.doing = doing
        self.made_anew: set[str] = set()
        self._report = report
        self._lock = -1
        self._held: HeldDirectory | None = None
        self._told = False  # that it was moved

    def _lay_out(self, root: Path) -> None:
        self.root = root
        self.config_file = root / _CONFIG
        self.metrics_file = root / _METRICS
        self.evaluations_file = root / "evaluations.jsonl"
        self.timings_file = root / "timings.jsonl"
        self.tensorboard = root / "tensorboard"
        self.plot_file = root / "loss.png"
        self.checkpoints = root / _CHECKPOINTS
        self.model = root / "model"
        self.data = root / "data"
        self.validation = root / "validation"

    def __enter__(self) -> RunDirectory:
        """Take the lock, which the system drops when the process ends, however it does.

        Raises:
            ValueError: another process holds it; the message names it.
            CheckpointError: of `require_run_directory`.
        """
        require_run_directory(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self._held = HeldDirectory(self.path)
        self._lay_out(self._held.way)
        try:
            self._lock = take_lock(self.path, self._held, self._report)
            close_in_children(self._lock)
            if not self._held.in_place:
                raise ValueError(f"{self.path} was moved while it was opened: look where it is now")
        except BaseException as error:
            with_names(error)
            self._release()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            with_names(error)
        self._release()

    def _release(self) -> None:
        if self._lock >= 0:
            forget(self._lock)
            os.close(self._lock)
            self._lock = -1
        if self._held is not None:
            self.path = self._held.called
            self._held.close()
            self._held = None
        self._lay_out(self.path)

    @property
    def called(self) -> Path:
        """The name that it has now."""
        return self.path if self._held is None else self._held.called

    def require_held(self) -> None:
        """Look at where the directory is; to be called before something is written there.

        Raises:
            TrainingError: it was moved, and here nothing leads to a directory but its name.
        """
        held = self._held
        if held is None or held.in_place:
            return
        if not held.follows:
            raise TrainingError(
                f"{self.path} was moved while the run went on, and is not written to: its newest "
                "checkpoint is where it was moved to, and --resume auto goes on there"
            )
        if not self._told:
            self._report(f"{self.path} was moved: the run goes on in {held.called}")
            self._told = True

    def begin(self, config: TrainConfig, *, resume: bool, allowed: Allowed = NOTHING) -> bool:
        """Decide between a new run and going on with the one in the directory; keep the config.

        A run without a whole checkpoint has nothing to continue from and is begun anew. One that
        has not taken a step either, as the start failed, is not in the way of another.

        Args:
            config: what shall be run.
            resume: False refuses a directory in which something was run.
            allowed: what may differ from what was run until now.

        Returns:
            Whether there is a checkpoint to go on from.

        Raises:
            ValueError: the directory holds a run and `resume` is False, or the run was started with
                another config, or its newest checkpoint was made with something else.
            CheckpointError: its config cannot be read, or a log is a link.
            DiskFull: there is no room for the first files.
        """
        for log in (self.metrics_file, self.evaluations_file, self.timings_file):
            refuse_own_link(log)
        going_on = bool(whole_checkpoints(self.checkpoints))
        if not resume and (going_on or _has_lines(self.metrics_file)):
            raise ValueError(
                f"{self.path} holds a run: --resume auto goes on with it; else choose another "
                "run_dir"
            )
        if going_on:
            self._refuse_changes(config, allowed)
        require_room(self.root, _ROOM)
        self.checkpoints.mkdir(exist_ok=True)
        with atomic_file(self.config_file) as file:
            text = yaml.safe_dump(as_dict(config), sort_keys=False, allow_unicode=True)
            file.write_text(text, encoding="utf-8")
        return going_on

    def _refuse_changes(self, config: TrainConfig, allowed: Allowed) -> None:
        """Raise for changes that were not said to be meant, before anything is made again."""
        values = as_dict(config)
        different = lines_of_differences(self.read_config(), values)
        if refused := {name: line for name, line in different.items() if name not in allowed}:
            listed = "\n".join(f"  {line}" for line in refused.values())
            raise ValueError(
                f"{self.path} was started with another config; with this one it would be another "
                "run:\n"
                f"{listed}\nGive the old values, or choose another run_dir; a change that is meant "
                f"takes --allow-changes {','.join(refused)}"
            )
        changes: list[Change] = []
        if found := newest_seal(self.checkpoints, whole_checkpoints(self.checkpoints)):
            checkpoint, seal = found
            now = seal_of(self.root, values)
            changes = changes_between(seal, now)
            refuse_changes(checkpoint, changes, allowed)
        told = {change.key for change in changes if change.where == _CONFIG}
        self.made_anew = made_anew(told | different.keys())
        if found and "model" in self.made_anew:
            then = {**now, **foreseen(config)}
            refuse_changes(checkpoint, changes_between(seal, then), allowed)
            if then["tokenizer"] != seal["tokenizer"]:  # the tokens are those of the old one
                self.made_anew.add("data")

    def read_config(self) -> dict[str, Any]:
        """What `config.yaml` holds.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        return read_config_of_run(self.config_file)


def _has_lines(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0
