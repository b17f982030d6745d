"""Arrays on disk: what one side computed, until the other side has computed the same."""

from __future__ import annotations

import dataclasses
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
        count = int(np.prod(stored.shape))
        self._file.seek(stored.start)
        raw = bytearray(count * stored.dtype.itemsize)
        self._file.readinto(raw)
        return np.frombuffer(raw, stored.dtype).reshape(stored.shape)

    def close(self) -> None:
        """Remove the file."""
        self._file.close()
