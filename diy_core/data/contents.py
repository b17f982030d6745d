"""The bytes of files, unpacked where they are packed, in memory that does not grow with the file.

Places are counted in the bytes as they are unpacked.
"""

from __future__ import annotations

import bz2
import contextlib
import importlib
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from diy_core.data.files import DataError, data_errors
from diy_core.data.forms import form_of
from diy_core.system.outside import open_regular
from diy_core.utf8 import recognise

BLOCK = 1 << 20  # bytes that are unpacked at a time
_MOST_MEMORY = 1 << 31  # bytes of a decoder: xz -9 takes 64 MB, zstd --long=31 all of it
_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    "gzip": (b"\x1f\x8b",),
    "bzip2": (b"BZh",),
    "xz": (b"\xfd7zXZ\x00",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes([i]) + b"\x2a\x4d\x18" for i in range(0x50, 0x60))),
}


class Contents:
    """Reads stretches of files.

    The packed file that was read last stays open: stretches that follow one another in it are read
    in one pass, however many there are.
    """

    def __init__(self) -> None:
        self._path: str | None = None
        self._blocks: Iterator[bytes] = iter(())
        self._at = 0  # where `_left` begins
        self._left = b""

    def read(self, path: str, start: int, stop: int) -> bytes:
        """The bytes `start` to `stop` of a file.

        Raises:
            DataError: it cannot be read, or is shorter than it was.
        """
        content = self._unpacked(path, start, stop) if form_of(path).packing else None
        if content is None:
            with _naming_faults(path), open_regular(path) as file:
                file.seek(start)
                content = file.read(stop - start)
        if len(content) != stop - start:
            raise DataError(path, "became shorter while it was read: start again")
        return content

    def _unpacked(self, path: str, start: int, stop: int) -> bytes:
        if path != self._path or start < self._at:
            self._path, self._blocks, self._at, self._left = path, blocks(path), 0, b""
        pieces = []
        while self._at < stop:
            if not self._left:
                self._left = next(self._blocks, b"")
                if not self._left:
                    break
            here = self._left[: stop - self._at]
            pieces.append(here[max(0, start - self._at) :])
            self._at += len(here)
            self._left = self._left[len(here) :]
        return b"".join(pieces)


def blocks(path: str) -> Iterator[bytes]:
    """The bytes of a file in order, in blocks of `BLOCK` or less, none of them empty.

    Raises:
        DataError: it cannot be read, is cut off or damaged, or is not packed as its name says.
    """
    packing = form_of(path).packing
    with _naming_faults(path), open_regular(path) as file:
        if not packing:
            while block := file.read(BLOCK):
                yield block
            return
        new, damage = _decoder(path, packing)
        try:
            yield from _unpack(file, new)
        except (EOFError, damage) as error:
            if getattr(error, "errno", None) is not None:  # the disk's, not the decoder's
                raise
            raise DataError(path, _fault(path, packing, error)) from error


@contextlib.contextmanager
def _naming_faults(path: str) -> Iterator[None]:
    try:
        with data_errors():
            yield
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}") from error


def _unpack(file: IO[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    """Streams one after the other, as `cat a.gz b.gz` makes them, and zeros that fill up a block.

    What follows the first stream of a file and is none is an error: `bz2.open` and `lzma.open` drop
    it silently, though it may be the damaged rest.
    """
    decoder, raw = new(), file.read(BLOCK)
    while True:
        if block := decoder.decompress(raw, BLOCK):
            yield block
        if decoder.eof:
            raw = _next_stream(decoder.unused_data, file)
            if not raw:
                return
            decoder = new()
        elif decoder.needs_input:
            raw = file.read(BLOCK)
            if not raw:
                raise EOFError
        else:
            raw = b""


def _next_stream(rest: bytes, file: IO[bytes]) -> bytes:
    rest = rest.lstrip(b"\0")
    while not rest and (block := file.read(BLOCK)):
        rest = block.lstrip(b"\0")
    return rest


class _Gzip:
    """zlib's decoder in the form of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, content: bytes, most: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + content, most)


def _decoder(path: str, packing: str) -> tuple[Callable[[], Any], type[Exception]]:
    """What makes a decoder for one stream, and the error of its damaged data."""
    if packing == "gzip":
        return _Gzip, zlib.error
    if packing == "bzip2":
        return bz2.BZ2Decompressor, OSError
    if packing == "xz":
        return partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, _MOST_MEMORY), lzma.LZMAError
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        zstd = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise DataError(path, f"needs {name}: pip install 'diy-lm[train]'") from error
    options = {zstd.DecompressionParameter.window_log_max: _MOST_MEMORY.bit_length() - 1}
    return partial(zstd.ZstdDecompressor, options=options), zstd.ZstdError


def _fault(path: str, packing: str, error: Exception) -> str:
    """What is wrong with packed data, and what to do."""
    with open_regular(path) as file:
        head = file.read(4096)
    if not any(head.startswith(sign[: len(head)]) for sign in _BEGINNINGS[packing]):
        seen = recognise(head)
        other = f"it looks like {seen}" if seen else "take that ending off, if it is not packed"
        return f"is named {Path(path).suffix} and holds no {packing} data: {other}"
    if isinstance(error, EOFError):
        return f"is cut off: its {packing} data have no end. Copy it again"
    return f"is damaged: its {packing} data cannot be unpacked ({error}). Copy it again"
