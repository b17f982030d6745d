"""Training checkpoints of the PyTorch twin: arrays as one safetensors file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diy_core.checkpoints.interface import Stored
from diy_core.training.checkpoints import state_file
from diy_core.training.checkpoints.files import Arrays
from diy_core.training.checkpoints.store import CheckpointStore


class TrainingStore(CheckpointStore):
    """Checkpoints whose arrays are `state.safetensors`, under the names of `state_shapes`."""

    form = state_file.STATE_FILE

    @staticmethod
    def write_arrays(folder: Path, layout: Mapping[str, Stored], parts: Iterable[Arrays]) -> None:
        """Write the arrays of `layout` into a new folder as they come.

        Raises:
            OSError: the disk is full, ...
        """
        state_file.write_arrays(folder, layout, parts)

    @staticmethod
    def names_of_arrays(folder: Path) -> Sequence[str]:
        """The names of all arrays in the file.

        Raises:
            CheckpointError: the file cannot be read.
        """
        return state_file.names_of_arrays(folder)

    @staticmethod
    def read_arrays(folder: Path, layout: Mapping[str, Stored]) -> dict[str, NDArray[Any]]:
        """Read the arrays that `layout` names, as they are in the file.

        Raises:
            CheckpointError: the file cannot be read, or lacks one.
        """
        return state_file.read_arrays(folder, layout)
