"""A model in memory as a checkpoint, to be written from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import contiguous, fault_of_dtype
from diy_core.checkpoints.interface import Reader, Stored
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import match, tensors


class MemoryReader(Reader):
    """A model in memory, to be written from.

    Args:
        where: what error messages name.
        config: of the model.
        stored: every tensor by Hugging Face name.
        fetch: gives one tensor, in the Hugging Face layout.
        side_files: writes tokenizer and generation files into a directory; None has none.

    Raises:
        CheckpointError: `stored` is not what the config asks for; all faults at once.
    """

    kind = "memory"

    def __init__(
        self,
        where: str,
        config: DIYConfig,
        stored: Mapping[str, Stored],
        fetch: Callable[[str], NDArray[Any]],
        side_files: Callable[[Path], None] | None = None,
    ) -> None:
        faults = match(
            {name: tensor.shape for name, tensor in stored.items()},
            {tensor.hf: tensor.shape for tensor in tensors(config)},
        )
        found = {name: fault_of_dtype(tensor.dtype) for name, tensor in stored.items()}
        faults += [f"tensor {name} {fault}" for name, fault in found.items() if fault]
        if faults:
            raise CheckpointError(where, faults)
        ordered = {tensor.hf: stored[tensor.hf] for tensor in tensors(config)}
        super().__init__(Path(where), config, ordered)
        self._fetch, self._side_files = fetch, side_files
        self.notes.clear()  # nothing was read

    def _read(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        return {name: contiguous(self._fetch(name)) for name in names}

    def _copy_side_files(self, to: Path) -> None:
        if self._side_files is not None:
            self._side_files(to)
