"""Parquet files: their row groups, and the rows of one."""

from __future__ import annotations

import io
import weakref
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from diy_core.data.files import DataError, data_errors
from diy_core.system.outside import open_regular
from diy_core.system.sources import CHANGED, Identity
from diy_core.system.translated import translated, words_of
from diy_core.utf8 import recognise

_ROWS = 256  # that are in memory as Python's objects at a time


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

    def rows(self, path: str, group: int, columns: list[str]) -> Iterator[dict[str, Any]]:
        """The rows of a row group of the file that is open.

        Raises:
            DataError: they are damaged.
        """
        # Also texts that are not UTF-8, and times that Python cannot tell.
        with translated(path, f"has a damaged row group, {group + 1}", raises=DataError):
            batches = self._table.iter_batches(_ROWS, row_groups=[group], columns=columns)
            for batch in batches:
                yield from batch.to_pylist()


def opened(path: str) -> io.BufferedReader:
    """The file, open."""
    with data_errors():
        return open_regular(path)


def table(path: str, file: BinaryIO) -> Any:
    """A `pyarrow.parquet.ParquetFile` of an open file.

    Raises:
        DataError: it is none.
    """
    try:
        import pyarrow.parquet  # only those who have such files need it
    except ModuleNotFoundError as error:
        raise DataError(path, "needs pyarrow: pip install 'diy-lm[train]'") from error

    def fault(error: BaseException) -> str:
        file.seek(0)
        seen = recognise(file.read(4096))
        other = seen and not seen.startswith("parquet")
        return f"is no parquet file: {f'it looks like {seen}' if other else words_of(error)}"

    with translated(path, fault, raises=DataError):
        return pyarrow.parquet.ParquetFile(file)
