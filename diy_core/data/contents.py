"""The bytes of files, unpacked where they are packed, in memory that does not grow with the file.

Places are counted in the bytes as they are unpacked.
"""

from __future__ import annotations

import bz2
import contextlib
import hashlib
import importlib
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Protocol

from diy_core.data.files import DataError, data_errors
from diy_core.data.forms import form_of
from diy_core.system.outside import open_regular
from diy_core.system.sources import CHANGED
from diy_core.system.translated import translated, words_of
from diy_core.system.utf8 import recognise

BLOCK = 1 << 20  # bytes that are unpacked at a time
_PIECE = 16 << 10  # packed bytes that a decoder is given at a time
_MOST_ZEROS = 64 << 20  # behind a stream; tapes and disks fill up blocks of a few MB
_MOST_MEMORY = 1 << 31  # bytes of a decoder: xz -9 takes 64 MB, zstd --long=31 all of it
_BEGINNINGS: dict[str, tuple[bytes, ...]] = {
    "gzip": (b"\x1f\x8b",),
    "bzip2": (b"BZh",),
    "xz": (b"\xfd7zXZ\x00",),
    "zstd": (b"\x28\xb5\x2f\xfd", *(bytes([i]) + b"\x2a\x4d\x18" for i in range(0x50, 0x60))),
}


class Digest(Protocol):
    """What sums up bytes, such as `hashlib.sha256()`."""

    def update(self, content: bytes, /) -> object:
        """Go on with these."""


class Ahead:
    """A stream of blocks, of which the beginning can be looked at before all is read."""

    def __init__(self, stream: Iterator[bytes]) -> None:
        self._stream = stream
        self._taken: list[bytes] = []

    def look(self) -> Iterator[bytes]:
        """The blocks from the beginning; they are kept for those who read it later."""
        yield from self._taken
        for block in self._stream:
            self._taken.append(block)
            yield block

    def __iter__(self) -> Iterator[bytes]:
        """All of it; only once."""
        taken, self._taken = self._taken, []
        yield from taken
        yield from self._stream


class Contents:
    """Reads stretches of files.

    The packed file that was read last stays open: stretches that follow one another in it are read
    in one pass, however many there are.

    Attributes:
        unpacked: stretches of packed files that another process has unpacked, by path and start.
    """

    def __init__(self) -> None:
        self.unpacked: Mapping[tuple[str, int], bytes] = {}
        self._path: str | None = None
        self._blocks: Iterator[bytes] = iter(())
        self._at = 0  # where `_left` begins
        self._left = b""

    def read(self, path: str, start: int, stop: int, sha256: str) -> bytes:
        """The bytes `start` to `stop` of a file, which have this sum.

        Raises:
            DataError: it cannot be read, or the bytes are others than before.
        """
        content = self.unpacked.get((path, start))
        if content is None and form_of(path).packing:
            content = self._unpacked(path, start, stop)
        if content is None:
            with _naming_faults(path), open_regular(path) as file:
                file.seek(start)
                content = file.read(stop - start)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DataError(path, CHANGED)
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


def blocks(path: str, digest: Digest | None = None) -> Iterator[bytes]:
    """The bytes of a file in order, in blocks of `BLOCK` or less, none of them empty.

    Args:
        path: of the file.
        digest: is given the bytes as they lie in the file.

    Raises:
        DataError: it cannot be read, is cut off or damaged, or is not packed as its name says.
    """
    packing = form_of(path).packing
    with _naming_faults(path), open_regular(path) as file:
        raw = _raw(file, digest)
        if not packing:
            yield from raw
            return
        new = _decoder(path, packing)
        with translated(path, partial(_fault, path, packing), raises=DataError):
            yield from _unpack(raw, new)


@contextlib.contextmanager
def _naming_faults(path: str) -> Iterator[None]:
    try:
        with data_errors():
            yield
    except OSError as error:
        raise DataError(path, f"cannot be read: {error.strerror or error}") from error


def _raw(file: IO[bytes], digest: Digest | None) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        if digest is not None:
            digest.update(block)
        yield block


def _unpack(raw: Iterator[bytes], new: Callable[[], Any]) -> Iterator[bytes]:
    """Streams one after the other, as `cat a.gz b.gz` makes them, and zeros that fill up a block.

    What follows the first stream of a file and is none is an error: `bz2.open` and `lzma.open` drop
    it silently, though it may be the damaged rest. Bytes are handed on in small pieces, as decoders
    copy what they leave: of a thousand streams in a block each would copy all that follow.
    """
    pieces, decoder = _Pieces(raw), new()
    given = pieces.next()
    while True:
        if block := decoder.decompress(given, BLOCK):
            yield block
        given = b""
        if decoder.eof:
            pieces.put_back(decoder.unused_data)
            given = pieces.next_stream()
            if not given:
                return
            decoder = new()
        elif decoder.needs_input:
            given = pieces.next()
            if not given:
                raise EOFError


class _Pieces:
    """Blocks in pieces of `_PIECE` or less; b"" at their end."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._block, self._at = b"", 0

    def next(self) -> bytes:
        if self._at == len(self._block):
            self._block, self._at = next(self._blocks, b""), 0
        piece = self._block[self._at : self._at + _PIECE]
        self._at += len(piece)
        return piece

    def put_back(self, rest: bytes) -> None:
        """The end of the last piece was not needed."""
        self._at -= len(rest)

    def next_stream(self) -> bytes:
        """The first piece without the zeros in front of it."""
        zeros = 0
        while piece := self.next():
            if stream := piece.lstrip(b"\0"):
                return stream
            zeros += len(piece)
            if zeros > _MOST_ZEROS:
                raise _TooManyZeros(f"more than {_MOST_ZEROS} zeros follow a stream")
        return b""


class _TooManyZeros(Exception):
    """More zeros follow a compressed stream than padding explains: the file is full of holes."""


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


def _decoder(path: str, packing: str) -> Callable[[], Any]:
    """What makes a decoder for one stream."""
    if packing == "gzip":
        return _Gzip
    if packing == "bzip2":
        return bz2.BZ2Decompressor
    if packing == "xz":
        return partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, _MOST_MEMORY)
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        zstd = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise DataError(path, f"needs {name}: pip install 'diy-lm[train]'") from error
    options = {zstd.DecompressionParameter.window_log_max: _MOST_MEMORY.bit_length() - 1}
    return partial(zstd.ZstdDecompressor, options=options)


def _fault(path: str, packing: str, error: BaseException) -> str:
    """What is wrong with packed data, and what to do."""
    if isinstance(error, OSError) and error.errno is not None:  # the disk's, not the decoder's
        return f"cannot be read: {error.strerror or error}"
    with open_regular(path) as file:
        head = file.read(4096)
    if not any(head.startswith(sign[: len(head)]) for sign in _BEGINNINGS[packing]):
        seen = recognise(head)
        other = f"it looks like {seen}" if seen else "take that ending off, if it is not packed"
        return f"is named {Path(path).suffix} and holds no {packing} data: {other}"
    if isinstance(error, EOFError):
        return f"is cut off: its {packing} data have no end. Copy it again"
    return f"is damaged: its {packing} data cannot be unpacked ({words_of(error)}). Copy it again"
