"""Training checkpoints of the PyTorch twin: arrays as one safetensors file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diy_core.checkpoints.interface import Stored
from diy_core.checkpoints.safetensors_files import SafetensorsWriter, read_header, read_slot
from diy_core.errors import CheckpointError
from diy_core.training.checkpoint_files import Arrays
from diy_core.training.checkpoint_store import CheckpointStore


class TrainingStore(CheckpointStore):
    """Checkpoints whose arrays are `state.safetensors`, under the names of `state_shapes`."""

    form = "state.safetensors"

    @staticmethod
    def write_arrays(folder: Path, layout: Mapping[str, Stored], parts: Iterable[Arrays]) -> None:
        """Write the arrays of `layout` into a new folder as they come.

        Raises:
            OSError: the disk is full, ...
        """
        shapes = {name: (stored.shape, stored.dtype) for name, stored in layout.items()}
        writer = SafetensorsWriter(folder / TrainingStore.form, shapes)
        try:
            for part in parts:
                for name, array in part.items():
                    writer.write(name, array)
        finally:
            writer.close()

    @staticmethod
    def read_arrays(folder: Path, layout: Mapping[str, Stored]) -> dict[str, NDArray[Any]]:
        """Read the arrays that `layout` names, as they are in the file.

        Raises:
            CheckpointError: the file cannot be read, or lacks one.
        """
        slots = read_header(folder / TrainingStore.form)
        if missing := [f"missing tensor {name}" for name in layout if name not in slots]:
            raise CheckpointError(folder / TrainingStore.form, missing)
        return {name: read_slot(slots[name]) for name in layout}
