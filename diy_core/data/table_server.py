"""The process of `table_process`: reads parquet files that it is handed, one request at a time.

It is run by its path, with no package around it, so that it starts as fast as pyarrow does.

Only Linux counts what a process has taken in a way that can be limited; elsewhere nothing is.
"""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VALUE, ERROR, NO_MEMORY = range(3)  # what an answer is
HEAD = struct.Struct("<BQ")  # of an answer and of a request: what it is, and its bytes
_ROWS = 256  # that are in memory as Python's objects at a time
_BATCH = 16 << 20  # bytes that they have together, by what the file says
_UNFOLDED = 8  # times what is on disk may be taken by what is made of it: texts pack to a half
_BUFFER = 1 << 20
_STATISTICS = Path("/proc/self/statm")
_DATA = 5  # which of its numbers counts the pages of data


def main() -> None:
    """Serve until the other side closes the connection."""
    # Pickles come from the process that started this one, never from a file.
    connection = socket.socket(fileno=0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    paths, _ = _receive(connection)
    sys.path[:] = paths
    with contextlib.suppress(ValueError, OSError):  # a crash is no reason for a core file
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    table = _Table()
    while True:
        try:
            (name, *arguments), files = _receive(connection)
        except (EOFError, ConnectionError):
            return
        kind, content = _answer(getattr(table, name), *arguments, *files)
        try:
            connection.sendall(HEAD.pack(kind, len(content)))
            connection.sendall(content)
        except OSError:  # nobody waits for it any more
            return
        if kind == NO_MEMORY:  # what took it may still be held
            return


class _Table:
    """The file that is open; its methods are what can be asked for."""

    def __init__(self) -> None:
        self._file: io.BufferedReader | None = None
        self._table: Any = None
        self._batches: Iterator[Any] = iter(())

    def open(self, most: int, descriptor: int) -> tuple[list[str], list[tuple[int, int]]]:
        """Its columns, and of each row group the rows and the bytes."""
        import pyarrow.parquet  # before memory is limited

        self.close()
        self._file = io.BufferedReader(io.FileIO(descriptor))
        with _at_most(most):
            # Not read ahead: a row group may have gigabytes.
            self._table = pyarrow.parquet.ParquetFile(
                self._file, pre_buffer=False, buffer_size=_BUFFER
            )
            known = self._table.metadata
            groups = (known.row_group(i) for i in range(known.num_row_groups))
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
            return self._table.schema_arrow.names, sizes

    def close(self) -> None:
        """Let go of it."""
        if self._file is not None:
            self._file.close()
        self._file, self._table, self._batches = None, None, iter(())

    def group(self, most: int, group: int, columns: list[str]) -> int:
        """Begin to read a row group.

        Returns:
            How much memory each call of `rows` may take.
        """
        assert self._file is not None
        with _at_most(most):
            count, packed, unpacked = _sizes(self._table.metadata.row_group(group), columns)
            rows = max(1, min(_ROWS, _BATCH * count // max(1, unpacked)))
            # One thread: each would take memory of its own, and several processes read shards.
            self._batches = self._table.iter_batches(
                rows, row_groups=[group], columns=columns, use_threads=False
            )
        # What a description says of its file may be anything.
        return most + _UNFOLDED * min(packed, os.fstat(self._file.fileno()).st_size)

    def rows(self, most: int) -> list[dict[str, Any]]:
        """The next ones, at least one; none: that was all."""
        with _at_most(most):
            for batch in self._batches:
                if found := batch.to_pylist():
                    return found
        return []


def _sizes(group: Any, columns: list[str]) -> tuple[int, int, int]:
    """Of a row group: its rows, and the bytes of columns as they lie there and unpacked."""
    packed = unpacked = 0
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema.split(".")[0] in columns:
            packed += max(0, column.total_compressed_size)
            unpacked += max(0, column.total_uncompressed_size)
    return group.num_rows, packed, unpacked


def _answer(function: Any, *arguments: Any) -> tuple[int, bytes]:
    try:
        return VALUE, pickle.dumps(function(*arguments), pickle.HIGHEST_PROTOCOL)
    except MemoryError:  # also pyarrow's
        return NO_MEMORY, b""
    except Exception as error:  # what a library raises for a damaged file is anything
        try:
            content = pickle.dumps(error)
            pickle.loads(content)  # some cannot be made again
            return ERROR, content
        except Exception:
            return ERROR, pickle.dumps(ValueError(str(error)))


def _receive(connection: socket.socket) -> tuple[Any, list[int]]:
    head, files, _, _ = socket.recv_fds(connection, HEAD.size, 1)
    _, length = HEAD.unpack(head + _exactly(connection, HEAD.size - len(head)))
    return pickle.loads(_exactly(connection, length)), files


def _exactly(connection: socket.socket, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        if not (more := connection.recv(count - len(content))):
            raise EOFError
        content += more
    return bytes(content)


@contextlib.contextmanager
def _at_most(more: int) -> Iterator[None]:
    """Inside, this process can take so many bytes more than it has.

    What asks for too much gets an error where it allocates, as it would on a full machine. A
    library that cannot bear that ends the process, and no other one.
    """
    try:
        pages = int(_STATISTICS.read_text(encoding="ascii").split()[_DATA])
    except OSError:  # the system does not say
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = (pages * os.sysconf("SC_PAGE_SIZE") + more, soft, hard)
    lowest = min(bound for bound in bounds if bound != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


if __name__ == "__main__":
    main()
