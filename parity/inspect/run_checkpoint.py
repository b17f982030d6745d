"""A checkpoint of a training run of either twin, to be read and never written to.

Another process may be training in the run. Nothing here takes its lock, moves what a killed process
left, or makes a file; a checkpoint that the run deletes in the meantime is called gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diy_core.checkpoints.interface import Stored
from diy_core.checkpoints.training_run import FORMS, Place, form_of, place_in_run
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.training.checkpoints import state_file
from diy_core.training.checkpoints.files import (
    Checkpoint,
    NamesOfArrays,
    ReadArrays,
    whole_checkpoints,
)
from diy_core.training.export import find_checkpoint
from diy_core.training.run.seal import changes_between, require_same_model, seal_of
from diy_core.training.run.yaml_file import read_config_of_run
from diy_core.training.state import Position
from parity.inspect.run_data import Descriptions, meaning


class GoneError(CheckpointError):
    """A checkpoint was there, and was deleted before it was read."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            path,
            "was deleted while it was read, as a run does that goes on (keep_last): take a newer "
            "one, or one that keep_every keeps",
        )


def place_of_run(path: str | Path, step: int | None = None) -> Place | None:
    """The run that a path names, with the step where one is named; None: it names no run.

    Args:
        path: `RUN`, `RUN/checkpoints` or `RUN/checkpoints/STEP`.
        step: for `RUN`, which checkpoint is meant.

    Raises:
        CheckpointError: the path names another step.
    """
    place = place_in_run(Path(path))
    if place is None or place.room not in ("", "checkpoints"):
        return None
    if step is None or place.step == step:
        return place
    if place.step is not None:
        raise CheckpointError(path, f"is the checkpoint of step {place.step}: leave step out")
    return dataclasses.replace(place, step=step)


def steps_of(run: Path) -> list[int]:
    """The steps of a run's checkpoints, rising."""
    return whole_checkpoints(run / "checkpoints")


def config_of(run: Path) -> dict[str, Any]:
    """What a run's `config.yaml` holds.

    Raises:
        CheckpointError: it is damaged.
    """
    return read_config_of_run(run / "config.yaml")


@dataclasses.dataclass(frozen=True)
class RunCheckpoint:
    """One checkpoint of a run, opened; its arrays are read when they are asked for.

    Attributes:
        run: the directory of the run.
        step: of the checkpoint.
        program: the twin that wrote it, `diy-torch` or `diy-jax`.
        config: of the model.
        position: where the run stood.
        files: what was opened.
    """

    run: Path
    step: int
    program: str
    config: DIYConfig
    position: Position
    files: Checkpoint

    @classmethod
    def open(cls, run: Path, step: int | None) -> RunCheckpoint:
        """Open the checkpoint of a step; None: the newest.

        Raises:
            CheckpointError: no such checkpoint, or it is damaged.
        """
        path = find_checkpoint(run, step)
        with naming_the_gone(path):
            form = form_of(path)
            if form is None:
                raise CheckpointError(
                    path, f"is damaged: it has none of {', '.join(FORMS)}, its arrays"
                )
            config = DIYConfig.from_pretrained(run / "model")
            files = Checkpoint.open(path, *_reader(form), config)
            position = Position.from_json(files.position, path)
            require_same_model(path, position.made_with)
        return cls(run, int(path.name), FORMS[form], config, position, files)

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Shape and dtype of every array, `KIND/NAME`."""
        return self.files.layout

    @property
    def notes(self) -> list[str]:
        """What the run has now, and the checkpoint was not made with; the model is the same."""
        made_with = self.position.made_with
        if made_with is None:
            return []
        try:
            now = seal_of(self.run, config_of(self.run))
        except CheckpointError as error:
            return [f"what checkpoint {self.step} was made with cannot be compared: {error}"]
        return [
            f"changed since checkpoint {self.step} was made: {change}"
            for change in changes_between(made_with, now)
        ]

    def state(self, known: Descriptions) -> tuple[object, object]:
        """What two checkpoints of one state have in common: the sums of all arrays, and where.

        Args:
            known: data, which are the same where their tokens are.
        """
        return dict(self.files.manifest.tensors), meaning(self.position, known)

    def read(self, names: Sequence[str]) -> Mapping[str, NDArray[Any]]:
        """Some arrays, compared with their sums.

        Raises:
            CheckpointError: they are not what was written.
        """
        with naming_the_gone(self.files.path):
            return self.files.read(names)


@contextlib.contextmanager
def naming_the_gone(path: Path) -> Iterator[None]:
    """Whatever went wrong with a checkpoint that is not there any more has that as its reason.

    Raises:
        GoneError: instead.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        if path.is_dir():
            raise
        raise GoneError(path) from error


def _reader(form: str) -> tuple[NamesOfArrays, ReadArrays]:
    if form == state_file.STATE_FILE:
        return state_file.names_of_arrays, state_file.read_arrays
    return _names_in_orbax, _read_orbax


def _names_in_orbax(folder: Path) -> Sequence[str]:
    from diy_jax.training_store import TrainingStore  # as below

    return TrainingStore.names_of_arrays(folder)


def _read_orbax(folder: Path, layout: Mapping[str, Stored]) -> dict[str, NDArray[Any]]:
    from diy_jax.training_store import TrainingStore  # needs JAX, which what stands beside does not

    return TrainingStore.read_arrays(folder, layout)
