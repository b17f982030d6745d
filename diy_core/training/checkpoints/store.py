"""The checkpoints of a run, written in a thread while training goes on."""

from __future__ import annotations

import abc
import functools
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.atomic import recover, remove_directory
from diy_core.checkpoints.interface import Stored
from diy_core.checkpoints.training_run import FORMS, checkpoint_path, form_of
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.system.places import unused_name
from diy_core.system.shell import command
from diy_core.system.snapshots import snapshot
from diy_core.training.checkpoints.files import (
    Arrays,
    Checkpoint,
    is_own,
    whole_checkpoints,
    write_checkpoint,
)
from diy_core.training.state import Position, state_shapes

_REMAINS = re.compile(r"\.(\d+)\.tmp-[0-9a-f]{8}(\.lock)?")


def drop_remains(folder: Path) -> None:
    """Remove what killed writes of checkpoints left in the directory of a run that is held."""
    for item in folder.iterdir():
        if match := _REMAINS.fullmatch(item.name):
            recover(folder / match[1])


class OtherTwinError(CheckpointError):
    """A checkpoint is whole for all we know, but the other twin's.

    Attributes:
        program: the one that wrote it.
    """

    def __init__(self, path: Path, program: str, own: str) -> None:
        self.program = program
        run = path.parents[1]
        new_run = unused_name(f"{run}-{own.removeprefix('diy-')}")
        switch = command("parity", "switch", run, Path(new_run))
        super().__init__(
            path,
            f"was written by {program}: continue it with that, or `{switch}` turns it into a "
            f"run for {own}",
        )


class Stateful(Protocol):
    """What a store needs of a trainer.

    Attributes:
        model_config: of its model.
        master: dtype of weights and moments.
    """

    model_config: DIYConfig
    master: np.dtype[Any]

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """A copy of all arrays of `state_shapes`, which later steps leave as it is."""

    def assign(self, arrays: Iterable[tuple[str, NDArray[Any]]], updates: int) -> None:
        """Take the arrays of `state_shapes`, and AdamW's count of updates."""


class CheckpointStore(abc.ABC):
    """The checkpoints of one trainer; a twin says how arrays become files.

    Args:
        trainer: whose state is saved and restored.
        folder: where; the remains of killed writes there are removed.

    Attributes:
        form: the name of the twin's arrays in a checkpoint, one of `FORMS`.
    """

    form: ClassVar[str]

    @staticmethod
    @abc.abstractmethod
    def write_arrays(folder: Path, layout: Mapping[str, Stored], parts: Iterable[Arrays]) -> None:
        """Write the arrays of `layout` into a new folder as they come; called in a thread."""

    @staticmethod
    @abc.abstractmethod
    def names_of_arrays(folder: Path) -> Sequence[str]:
        """The names of all arrays in the folder, also of those that no run wrote."""

    @staticmethod
    @abc.abstractmethod
    def read_arrays(folder: Path, layout: Mapping[str, Stored]) -> dict[str, NDArray[Any]]:
        """Read the arrays that `layout` names; their values are compared elsewhere."""

    @classmethod
    def write(
        cls,
        path: Path,
        layout: Mapping[str, Stored],
        parts: Iterable[Arrays],
        position: Mapping[str, Any],
    ) -> None:
        """Write one checkpoint; see `write_checkpoint`."""
        write_checkpoint(path, cls.write_arrays, layout, parts, position)

    @classmethod
    def open(cls, path: Path, config: DIYConfig) -> Checkpoint:
        """Open one checkpoint.

        Raises:
            CheckpointError: as `Checkpoint.open`.
            OtherTwinError: it is the other twin's.
        """
        other = form_of(path) or cls.form
        if other != cls.form:
            raise OtherTwinError(path, FORMS[other], FORMS[cls.form])
        return Checkpoint.open(path, cls.names_of_arrays, cls.read_arrays, config)

    @classmethod
    def verify(cls, path: Path, model: Path) -> None:
        """Read a whole checkpoint, without a trainer.

        Args:
            path: its folder.
            model: the directory with the config.json of its model.

        Raises:
            CheckpointError: as `restore`.
            OtherTwinError: it is the other twin's.
        """
        checkpoint = cls.open(path, DIYConfig.from_pretrained(model))
        Position.from_json(checkpoint.position, path)
        for _ in checkpoint.read_all():
            pass

    def __init__(self, trainer: Stateful, folder: Path) -> None:
        self._trainer, self._folder = trainer, folder
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        drop_remains(folder)

    def save(self, step: int, extra: Mapping[str, Any]) -> None:
        """Copy the state, and begin to write it; see `interfaces.Store`."""
        self.wait()
        path, arrays = checkpoint_path(self._folder, step), self._trainer.snapshot()
        layout = {name: Stored(array.shape, array.dtype) for name, array in arrays.items()}
        write = functools.partial(self.write, path, layout, [arrays], dict(extra))
        self._thread = threading.Thread(target=self._catching, args=(write,))
        self._thread.start()

    def _catching(self, write: Callable[[], None]) -> None:
        try:
            write()
        except Exception as error:  # raised by `wait`, where somebody hears it
            self._error = error

    def wait(self) -> None:
        """Return when everything is on the disk; raises what went wrong there."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def steps(self) -> list[int]:
        """The steps of the whole checkpoints, rising."""
        return whole_checkpoints(self._folder)

    def restore(self, step: int) -> dict[str, Any]:
        """Give the trainer the state of a checkpoint; returns what was saved with it.

        Raises:
            CheckpointError: damaged, or of another model or dtype.
            OtherTwinError: it is the other twin's.
        """
        path = checkpoint_path(self._folder, step)
        checkpoint = self.open(path, self._trainer.model_config)
        if checkpoint.dtype != self._trainer.master:
            raise CheckpointError(
                path,
                f"holds {checkpoint.dtype}, this run keeps its state in {self._trainer.master}",
            )
        position = Position.from_json(checkpoint.position, path)
        self._trainer.assign(checkpoint.read_all(), position.updates)
        return checkpoint.position

    def delete(self, step: int) -> None:
        """Remove a checkpoint: first its name, so that a part of it never counts as whole.

        Raises:
            CheckpointError: it holds something that no run wrote.
            OSError: it cannot be removed.
        """
        path = checkpoint_path(self._folder, step)
        if not path.is_symlink() and (others := [n for n in snapshot(path) if not is_own(n)]):
            raise CheckpointError(
                path, f"holds {min(others)}, which no run wrote: move it elsewhere"
            )
        remove_directory(path)

    def nbytes(self) -> int:
        """The size of a checkpoint on the disk, about."""
        sizes = (int(np.prod(shape)) for shape in state_shapes(self._trainer.model_config).values())
        return sum(sizes) * self._trainer.master.itemsize
