"""Parquet files: their row groups, and the rows of one.

A table of some kilobytes may unfold to any size: its pages are compressed, texts that are equal are
stored once, and a list of a billion nulls takes a few bytes. So its description is measured before
it is read, and rows are read within an amount of memory that goes by what they have on disk.
"""

from __future__ import annotations

import contextlib
import io
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from diy_core.data.files import DataError, data_errors
from diy_core.system.allocations import at_most
from diy_core.system.limits import how_to_raise, limit
from diy_core.system.outside import open_regular
from diy_core.system.sources import CHANGED, Identity
from diy_core.system.translated import translated, words_of
from diy_core.utf8 import recognise

_ROWS = 256  # that are in memory as Python's objects at a time
_BATCH = 16 << 20  # bytes that they have together, by what the file says
_UNFOLDED = 8  # times what is on disk may be taken by what is made of it: texts pack to a half
_BUFFER = 1 << 20
_MAGIC = b"PAR1"


class Tables:
    """Reads row groups; the file that was read last stays open, as its description may be long."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._file: BinaryIO
        self._table: Any
        self._close: Callable[[], object] = lambda: None

    def open(self, path: str, identity: Identity | None) -> Any:
        """A `pyarrow.parquet.ParquetFile`, which is of the file that was opened before.

        Raises:
            DataError: it cannot be read, or is another file, or was changed.
        """
        if path != self._path:
            self._close()
            self._path, self._file = None, opened(path)
            self._close = weakref.finalize(self, self._file.close)
            self._table = table(path, self._file)
            self._path = path
        self.require(path, identity)
        return self._table

    def require(self, path: str, identity: Identity | None) -> None:
        """Raise where the file that is open is no longer what it was.

        Raises:
            DataError: it was changed.
        """
        if identity is not None and Identity.of(self._file) != identity:
            raise DataError(path, CHANGED)

    def rows(
        self, path: str, group: int, columns: list[str], first: int
    ) -> Iterator[dict[str, Any]]:
        """The rows of a row group of the file that is open.

        Args:
            path: of the file.
            group: counted from 0.
            columns: that are read.
            first: the number of its first row in the file, from 1, for messages.

        Raises:
            DataError: they are damaged, or take too much memory.
        """
        count, packed, unpacked = _sizes(self._table.metadata.row_group(group), columns)
        rows = max(1, min(_ROWS, _BATCH * count // max(1, unpacked)))
        # One thread: each would take memory of its own, and several processes read several shards.
        batches = self._table.iter_batches(
            rows, row_groups=[group], columns=columns, use_threads=False
        )
        most = limit("parquet_bytes") + _UNFOLDED * packed
        while True:
            what = f"has a damaged row group, {group + 1}"
            with _reading(path, what, f"row {first} and those behind it", most):
                batch = next(batches, None)
                found = [] if batch is None else batch.to_pylist()
            if batch is None:
                return
            first += len(found)
            yield from found


def opened(path: str) -> io.BufferedReader:
    """The file, open."""
    with data_errors():
        return open_regular(path)


def table(path: str, file: BinaryIO) -> Any:
    """A `pyarrow.parquet.ParquetFile` of an open file.

    Raises:
        DataError: it is none, or its description is too large.
    """
    try:
        import pyarrow.parquet  # only those who have such files need it
    except ModuleNotFoundError as error:
        raise DataError(path, "needs pyarrow: pip install 'diy-lm[train]'") from error
    _require_small_footer(path, file)

    def fault(error: BaseException) -> str:
        file.seek(0)
        seen = recognise(file.read(4096))
        other = seen and not seen.startswith("parquet")
        return f"is no parquet file: {f'it looks like {seen}' if other else words_of(error)}"

    with _reading(path, fault, "its description", limit("parquet_bytes")):
        # Not read ahead: a row group may have gigabytes.
        return pyarrow.parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER)


def _require_small_footer(path: str, file: BinaryIO) -> None:
    """Raise where the description, with which a file ends, is larger than it may be."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    length, magic = file.read(4), file.read(4)
    file.seek(0)
    most = limit("parquet_footer")
    if magic == _MAGIC and most < int.from_bytes(length, "little") < size:
        raise DataError(
            path,
            f"has a description (its row groups and columns) of more than {most} bytes: write it "
            f"with larger row groups, or, {how_to_raise('parquet_footer')}",
        )


def _sizes(group: Any, columns: list[str]) -> tuple[int, int, int]:
    """Of a row group: its rows, and the bytes of columns as they lie there and unpacked."""
    packed = unpacked = 0
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema.split(".")[0] in columns:
            packed += max(0, column.total_compressed_size)
            unpacked += max(0, column.total_uncompressed_size)
    return group.num_rows, packed, unpacked


@contextlib.contextmanager
def _reading(
    path: str, what: str | Callable[[BaseException], str], part: str, most: int
) -> Iterator[None]:
    """Inside, pyarrow reads: within so much memory, and its errors are those of the file."""
    # Also texts that are not UTF-8, and times that Python cannot tell.
    with translated(path, what, raises=DataError):
        try:
            with at_most(most):
                yield
        except MemoryError as error:  # also pyarrow's
            how = how_to_raise("parquet_bytes")
            raise DataError(
                path, f"needs more than {most} bytes of memory for {part}: {how}"
            ) from error
