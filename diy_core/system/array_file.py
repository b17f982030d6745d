"""An array in a file, of which parts are read as they are asked for."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from diy_core.system.outside import fill, open_regular
from diy_core.system.sources import Identity, StrPath

_PIECE = 1 << 20  # bytes that are summed at a time


class ArrayFile:
    """A file as an array of one axis, which is not held in memory and cannot be written to.

    The file is opened once: what takes its name later is not read. It is not mapped, as a mapped
    file that becomes shorter kills the process.

    Args:
        path: of the file; bytes at its end that do not fill an item are left out.
        dtype: of the items.

    Attributes:
        size: the number of items.
        nbytes: the size of the file.

    Raises:
        CheckpointError: of `open_regular`.
    """

    def __init__(self, path: StrPath, dtype: DTypeLike) -> None:
        self.path, self.dtype = path, np.dtype(dtype)
        with open_regular(path) as file:
            self.nbytes = Identity.of(file).size
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self.size = self.nbytes // self.dtype.itemsize

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: int | slice) -> Any:
        """An item, or a read-only array of the items from one place to another.

        Raises:
            CheckpointError: the file has become shorter, or cannot be read any more.
            IndexError: there is no such item.
            ValueError: a step other than 1.
        """
        if not isinstance(part, slice):
            index = range(self.size)[part]
            return self[index : index + 1][0]
        start, stop, step = part.indices(self.size)
        if step != 1:
            raise ValueError(f"parts of {self.path} are read in order, got a step of {step}")
        found = np.empty(max(0, stop - start), self.dtype)
        at = start * self.dtype.itemsize
        fill(self._descriptor, self.path, at, found.view(np.uint8).data)
        found.flags.writeable = False
        return found

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """All of it, in memory."""
        if copy is False:
            raise ValueError(f"{self.path} is not in memory: it has to be copied")
        return self[:] if dtype is None else self[:].astype(dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process opens the file anew."""
        return type(self), (self.path, self.dtype)

    def sha256(self) -> str:
        """Of the file, in hexadecimal.

        Raises:
            CheckpointError: as for parts.
        """
        digest, buffer = hashlib.sha256(), bytearray(_PIECE)
        for start in range(0, self.nbytes, _PIECE):
            piece = memoryview(buffer)[: self.nbytes - start]
            fill(self._descriptor, self.path, start, piece)
            digest.update(piece)
        return digest.hexdigest()
