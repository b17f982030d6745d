"""Arrays on disk: what one side computed, until the other side has computed the same."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where an array lies in the spool."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int


class Spool:
    """A temporary file of arrays, so that the activations of a large model need no memory.

    The file has no name and vanishes with the object, or with the process.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="parity-trace-")  # noqa: SIM115 (closed by `close`)
        self._end = 0

    def put(self, array: NDArray[Any]) -> Stored:
        """Write an array, in C order."""
        array = np.asarray(array, order="C")
        stored = Stored(array.shape, array.dtype, self._end)
        self._file.seek(self._end)
        self._end += self._file.write(array.reshape(-1).view(np.uint8).data)
        return stored

    def get(self, stored: Stored) -> NDArray[Any]:
        """Read an array back."""
        raw = np.empty(math.prod(stored.shape) * stored.dtype.itemsize, np.uint8)
        self._file.seek(stored.start)
        self._file.readinto(raw.data)
        return raw.view(stored.dtype).reshape(stored.shape)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
