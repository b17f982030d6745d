"""The arrays of a training checkpoint as one safetensors file, as the PyTorch twin keeps them.

Here, as `parity` also reads it where torch is not installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import FLOATS
from diy_core.checkpoints.hf.safetensors_files import SafetensorsWriter, read_header, read_slot
from diy_core.checkpoints.interface import Stored
from diy_core.errors import CheckpointError
from diy_core.training.checkpoints.files import Arrays

STATE_FILE = "state.safetensors"


def write_arrays(folder: Path, layout: Mapping[str, Stored], parts: Iterable[Arrays]) -> None:
    """Write the arrays of `layout` into a new folder as they come.

    Raises:
        OSError: the disk is full, ...
    """
    shapes = {name: (stored.shape, stored.dtype) for name, stored in layout.items()}
    writer = SafetensorsWriter(folder / STATE_FILE, shapes)
    try:
        for part in parts:
            for name, array in part.items():
                writer.write(name, array)
    finally:
        writer.close()


def names_of_arrays(folder: Path) -> list[str]:
    """The names of all arrays that the file holds.

    Raises:
        CheckpointError: the file cannot be read.
    """
    return list(read_header(folder / STATE_FILE))


def read_arrays(folder: Path, layout: Mapping[str, Stored]) -> dict[str, NDArray[Any]]:
    """Read the arrays that `layout` names, as they are in the file.

    Raises:
        CheckpointError: the file cannot be read, or lacks one.
    """
    slots = read_header(folder / STATE_FILE)
    if missing := [f"missing tensor {name}" for name in layout if name not in slots]:
        raise CheckpointError(folder / STATE_FILE, missing)
    if wrong := [
        f"tensor {name} is {slots[name].dtype}, in the manifest {layout[name].dtype}"
        for name in layout
        if slots[name].dtype not in FLOATS
    ]:
        raise CheckpointError(folder / STATE_FILE, wrong)
    return {name: read_slot(slots[name]) for name in layout}
