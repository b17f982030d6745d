"""Parquet files: their row groups, and the rows of one.

A table of some kilobytes may unfold to any size: its pages are compressed, texts that are equal are
stored once, and a list of a billion nulls takes a few bytes. So its description is measured before
it is read, and rows are read within an amount of memory that goes by what they have on disk.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from diy_core.data.files import DataError, data_errors
from diy_core.data.table_process import TableProcess, borrowed
from diy_core.system.limits import how_to_raise, limit
from diy_core.system.outside import open_regular
from diy_core.system.sources import CHANGED, Identity
from diy_core.system.translated import translated, words_of
from diy_core.system.utf8 import recognise

_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Table:
    """What the description of a parquet file says.

    Attributes:
        names: of its columns.
        groups: for each row group, its rows and bytes.
    """

    names: list[str]
    groups: list[tuple[int, int]]


class Tables:
    """Reads row groups; the file that was read last stays open, as its description may be long."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._file: io.BufferedReader
        self._table: Table
        self._process: TableProcess | None = None
        self._let_go: Callable[[], object] = lambda: None

    def open(self, path: str, identity: Identity | None = None) -> Table:
        """The description of a file, which is the one that was opened before.

        Raises:
            DataError: it cannot be read, or is another file, or was changed.
        """
        if path != self._path or not (self._process and self._process.alive):
            self.close()
            if importlib.util.find_spec("pyarrow") is None:  # only those with such files need it
                raise DataError(path, "needs pyarrow: pip install 'diy-lm[train]'")
            with data_errors():
                self._file = open_regular(path)
            self._process = borrowed()
            self._let_go = weakref.finalize(self, _let_go, self._file, self._process)
            self._table = self._described(path)
            self._path = path
        self.require(path, identity)
        return self._table

    def close(self) -> None:
        """Let go of the file."""
        self._let_go()
        self._path, self._process = None, None

    def identity(self) -> Identity:
        """That of the file that is open."""
        return Identity.of(self._file)

    def content(self) -> io.BufferedReader:
        """The file that is open, from its beginning."""
        self._file.seek(0)
        return self._file

    def require(self, path: str, identity: Identity | None) -> None:
        """Raise where the file that is open is no longer what it was.

        Raises:
            DataError: it was changed.
        """
        if identity is not None and self.identity() != identity:
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
        what, most = f"has a damaged row group, {group + 1}", limit("parquet_bytes")
        with _reading(path, what, f"row group {group + 1}", most):
            most = self._ask("group", most, group, columns)
        while True:
            with _reading(path, what, f"row {first} and those behind it", most):
                found = self._ask("rows", most)
            if not found:
                return
            first += len(found)
            yield from found

    def _described(self, path: str) -> Table:
        _require_small_footer(path, self._file)

        def fault(error: BaseException) -> str:
            seen = recognise(self.content().read(4096))
            other = seen and not seen.startswith("parquet")
            return f"is not a parquet file: {f'it looks like {seen}' if other else words_of(error)}"

        most = limit("parquet_bytes")
        with _reading(path, fault, "its description", most):
            names, groups = self._ask("open", most, file=self._file.fileno())
        return Table(names, groups)

    def _ask(self, name: str, *arguments: Any, file: int | None = None) -> Any:
        assert self._process is not None
        return self._process.ask(name, *arguments, file=file)


def _let_go(file: BinaryIO, process: TableProcess) -> None:
    file.close()
    process.give_back()


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


@contextlib.contextmanager
def _reading(
    path: str, what: str | Callable[[BaseException], str], part: str, most: int
) -> Iterator[None]:
    """Inside, pyarrow reads: within so much memory, and its errors are those of the file."""
    # Also texts that are not UTF-8, and times that Python cannot tell.
    with translated(path, what, raises=DataError):
        try:
            yield
        except MemoryError as error:
            how = how_to_raise("parquet_bytes")
            raise DataError(
                path, f"needs more than {most} bytes of memory for {part}: {how}"
            ) from error
