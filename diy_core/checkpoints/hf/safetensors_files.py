"""safetensors files, read strictly and written tensor by tensor.

The format: eight bytes with the header's length (little-endian), the header (JSON: dtype, shape and
byte range of every tensor), then the tensors' bytes without gaps.

The `safetensors` library takes the last of two entries of one name, and a header that fills the
memory; it writes only what is in memory as a whole. So headers are read here: what was checked is
then what is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import FLOAT_NAMES, FLOATS, as_bytes
from diy_core.errors import CheckpointError
from diy_core.system.lfs import refuse_lfs_pointer
from diy_core.system.limits import how_to_raise, limit
from diy_core.system.outside import fill, open_regular
from diy_core.system.parsing import parse_json
from diy_core.system.renaming import start_writing_back
from diy_core.system.sources import Identity

_UNREADABLE = "is not a readable safetensors file"
PIECE = 1 << 20  # bytes that are summed or written at a time
_ENTRY = {"dtype", "shape", "data_offsets"}
_BITS = (8, 16, 32, 64)
# Every dtype of the format; only floats are weights.
_DTYPES: dict[str, np.dtype[Any]] = {
    **FLOATS,
    "BOOL": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"<{kind.lower()}{bits // 8}") for kind in "UI" for bits in _BITS},
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "C64": np.dtype(np.complex64),
}


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where the bytes of one tensor lie, `start` and `end` counted from the file's first byte."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


# What other files begin with.
_PICKLED = (
    "of pickled weights, as torch.save writes them: save them with safetensors.torch.save_file"
)
_SIGNS = {
    b"PK\x03\x04": f"a zip archive {_PICKLED}",
    b"\x80": f"a file {_PICKLED}",
    b"GGUF": "a GGUF file: give it by itself, under a name that ends in .gguf",
    b"\x89HDF": "a file of HDF5, as Keras writes them: save it from there as safetensors",
    b"\x1f\x8b": "packed with gzip: unpack it first",
    b"(\xb5/\xfd": "packed with Zstandard: unpack it first",
}


def _no_header(head: bytes, length: int, size: int) -> str:
    """What a file begins with in place of the length of a header."""
    if re.fullmatch(rb"[\t\n\r -~]{8,}", head) and (text := head.decode("ascii").strip()):
        first = text.splitlines()[0]
        return (
            f"it is a text that begins with {first!r}, such as an error that came in place of the "
            "file: download it again"
        )
    for sign, what in _SIGNS.items():
        if head.startswith(sign):
            return f"it is {what}"
    said = f"a header of {length} bytes, in a file of {size}"
    most = limit("header_bytes")
    if most < length <= size - 8:
        said += f"; a header may have {most}: {how_to_raise('header_bytes')}"
    return said


def read_header(file: Path) -> dict[str, Slot]:
    """The tensors of one safetensors file, checked against the file's size and each other.

    Raises:
        CheckpointError: it cannot be read, or the header is not true.
    """
    refuse_lfs_pointer(file)
    try:
        with open_regular(file) as stream:
            size = Identity.of(stream).size
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > min(size - 8, limit("header_bytes")):
                stream.seek(0)
                raise CheckpointError(
                    file, f"{_UNREADABLE}: {_no_header(stream.read(32), length, size)}"
                )
            text = stream.read(length)
        header = parse_json(text, file, pairs=refuse_twice(file), said=_UNREADABLE)
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(file, f"{_UNREADABLE}: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(file, f"{_UNREADABLE}: the header is not an object")
    header.pop("__metadata__", None)
    begin, faults = 8 + length, []
    slots: dict[str, Slot] = {}
    for name, entry in header.items():
        if fault := _fault(entry):
            faults.append(f"tensor {name}: {fault}")
        else:
            start, end = (begin + offset for offset in entry["data_offsets"])
            slots[name] = Slot(file, entry["dtype"], tuple(entry["shape"]), start, end)
    if not faults:
        faults = _gaps(slots, begin, size)
    if faults:
        raise CheckpointError(file, [f"{_UNREADABLE}: {fault}" for fault in faults])
    return slots


def _fault(entry: Any) -> str | None:
    """What is wrong with one entry of a header, or None."""
    if not isinstance(entry, dict) or set(entry) != _ENTRY:
        return f"an entry needs {', '.join(sorted(_ENTRY))} and nothing else"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        return f"dtype {dtype!r} is not known"
    lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
    numbers = [*shape, *offsets] if lists else []
    sizes = all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
    if not lists or not sizes or len(shape) > 64:
        return "shape and data_offsets must be lists of sizes"
    if offsets[1] - offsets[0] != math.prod(shape) * _DTYPES[dtype].itemsize:
        return f"{dtype} {tuple(shape)} does not fill bytes {offsets[0]} to {offsets[1]}"
    return None


def _gaps(slots: Mapping[str, Slot], begin: int, size: int) -> list[str]:
    """The tensors must cover the bytes after the header, each byte once."""
    at, faults = begin, []
    for name, slot in sorted(slots.items(), key=lambda item: (item[1].start, item[1].end)):
        if slot.start != at:
            faults.append(f"tensor {name} begins at byte {slot.start}, expected {at}")
        at = max(at, slot.end)
    if at != size:
        faults.append(f"the tensors end at byte {at} and the file at {size}: it is cut or damaged")
    return faults


def refuse_twice(file: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A hook of `json.loads`: an object in which a name stands twice is refused."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = sorted(name for name, count in counts.items() if count > 1)
            raise CheckpointError(file, [f"{name} stands there twice" for name in twice])
        return found

    return build


def read_slot(slot: Slot) -> NDArray[Any]:
    """The tensor in a slot, in memory of its own.

    Read, not mapped: pages of a mapped file count as this process's memory until it is closed.

    Raises:
        CheckpointError: the file has become shorter since its header was read.
    """
    array = np.empty(slot.shape, FLOATS[slot.dtype])
    read_into(slot.file, slot.start, as_bytes(array))
    return array


def pieces_of(slot: Slot) -> Iterator[NDArray[Any]]:
    """The values in a slot of any dtype, flat, a piece at a time.

    Raises:
        CheckpointError: the file has become shorter since its header was read.
    """
    dtype = _DTYPES[slot.dtype]
    step = PIECE // dtype.itemsize * dtype.itemsize
    with open_regular(slot.file) as stream:
        for start in range(slot.start, slot.end, step):
            piece = np.empty(min(step, slot.end - start) // dtype.itemsize, dtype)
            fill(stream, slot.file, start, as_bytes(piece))
            yield piece


def sum_of_slot(slot: Slot) -> str:
    """The SHA-256 of the bytes in a slot, which are not held.

    Raises:
        CheckpointError: the file has become shorter since its header was read.
    """
    digest, buffer = hashlib.sha256(), bytearray(PIECE)
    with open_regular(slot.file) as stream:
        for start in range(slot.start, slot.end, PIECE):
            piece = memoryview(buffer)[: slot.end - start]
            fill(stream, slot.file, start, piece)
            digest.update(piece)
    return digest.hexdigest()


def read_into(file: Path, start: int, buffer: memoryview) -> None:
    """Fill a buffer with the bytes of a file from `start` on.

    Raises:
        CheckpointError: the file ends before the buffer is full, or cannot be opened.
    """
    with open_regular(file) as stream:
        fill(stream, file, start, buffer)


class SafetensorsWriter:
    """One safetensors file, written tensor by tensor in any order.

    Args:
        file: where; it must not exist.
        layout: shape and dtype of every tensor.
    """

    def __init__(
        self, file: Path, layout: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
    ) -> None:
        # Wide dtypes first, so that every tensor is aligned to its item size.
        ordered = sorted(layout.items(), key=lambda item: -item[1][1].itemsize)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers 4 asks for it
        at = 0
        for name, (shape, dtype) in ordered:
            end = at + math.prod(shape) * dtype.itemsize
            kind = FLOAT_NAMES[str(dtype)]
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        begin = 8 + len(text)
        self._starts = {name: begin + header[name]["data_offsets"][0] for name in layout}
        self._stream: BinaryIO = file.open("xb", buffering=0)
        try:
            self._write(0, memoryview(len(text).to_bytes(8, "little") + text))
        except BaseException:
            self.close()
            raise

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Write one tensor of the layout."""
        self._write(self._starts.pop(name), as_bytes(array))
        start_writing_back(self._stream.fileno())

    def _write(self, at: int, buffer: memoryview) -> None:
        while len(buffer):  # Linux takes three times as long for pieces of 50 MB
            count = os.pwrite(self._stream.fileno(), buffer[:PIECE], at)
            at, buffer = at + count, buffer[count:]

    @property
    def complete(self) -> bool:
        """Whether every tensor of the layout was written."""
        return not self._starts

    def close(self) -> None:
        """Close the file; syncing it to the disk is the business of who moves it into place."""
        self._stream.close()
