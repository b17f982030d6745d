"""GGUF files, opened strictly: `gguf.GGUFReader` believes what a damaged file says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np

from diy_core.checkpoints.dtypes import as_bytes
from diy_core.errors import CheckpointError
from diy_core.system.lfs import refuse_lfs_pointer
from diy_core.system.limits import how_to_raise, limit
from diy_core.system.outside import fill, open_regular
from diy_core.system.sources import Identity
from diy_core.system.translated import translated

ROPE_FREQS = "rope_freqs.weight"
_ARRAY, _STRING = int(gguf.GGUFValueType.ARRAY), int(gguf.GGUFValueType.STRING)
_VALUE_TYPES = frozenset(map(int, gguf.GGUFValueType))
_TENSOR_TYPES = frozenset(map(int, gguf.GGMLQuantizationType))
_VERSIONS = (2, 3)
_MOST_OF_A_BYTE = 8  # numbers that are packed into it; the densest type has 5
_LEAST_ENTRY, _LEAST_TENSOR = 13, 24  # bytes
_LONGEST_NAME, _MOST_AXES = 65_535, 4  # the format's own
_AHEAD = 1 << 20  # bytes that are read at a time


class _StrictReader(gguf.GGUFReader):
    """A GGUFReader that reports a read past the end of the file; the original silently goes on.

    It maps the file, and a mapped file that becomes shorter kills the process that looks at it. So
    its metadata are read here, as far as they go, and its tensors elsewhere.
    """

    tensors: list[gguf.ReaderTensor]

    def __init__(self, path: Path, stream: BinaryIO) -> None:
        self._path, self._stream = path, stream
        self._size = Identity.of(stream).size
        # What is not written to takes no memory.
        self._metadata = np.empty(min(self._size, limit("gguf_bytes")), np.uint8)
        self._read = 0  # bytes of it that are there
        self._items = 0  # in lists, so far
        self._names: set[str] = set()
        self._is_at_tensors, self._name = False, ""
        super().__init__(stream)

    @property
    def data(self) -> Any:
        """The bytes of the metadata."""
        return self._metadata

    @data.setter
    def data(self, mapped: object) -> None:
        """The library's map is dropped before anybody looks at it."""

    def _get(self, offset: Any, dtype: Any, count: Any = 1, *rest: Any, **more: Any) -> Any:
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if self._is_at_tensors and end <= self._size:
            return np.broadcast_to(np.zeros((), dtype), (int(count),))
        self._reach(end)
        return super()._get(offset, dtype, count, *rest, **more)

    def _reach(self, end: int) -> None:
        """Have the metadata up to a byte."""
        if end <= self._read:
            return
        self._require_in_file(end)
        if end > len(self._metadata):
            how = how_to_raise("gguf_bytes")
            raise ValueError(f"its metadata are longer than {len(self._metadata)} bytes: {how}")
        stop = min(max(end, self._read + _AHEAD), len(self._metadata))
        fill(self._stream, self._path, self._read, as_bytes(self._metadata[self._read : stop]))
        self._read = stop

    def _require_in_file(self, end: int) -> None:
        if end > self._size:
            raise ValueError(
                f"the file ends at byte {self._size}, and what it describes at byte {end}: "
                "it is cut short or damaged"
            )

    def _build_fields(self, offs: Any, count: Any) -> Any:
        self._require_in_file(int(offs) + _LEAST_ENTRY * int(count))
        _refuse_more("gguf_entries", int(count), "entries of metadata")
        return super()._build_fields(offs, count)

    def _build_tensor_info(self, offs: Any, count: Any) -> Any:
        self._require_in_file(int(offs) + _LEAST_TENSOR * int(count))
        _refuse_more("gguf_tensors", int(count), "tensors")
        return super()._build_tensor_info(offs, count)

    def _get_str(self, offset: Any) -> Any:
        """The name of an entry or of a tensor."""
        length = int(self._get(offset, np.uint64)[0])
        if length > _LONGEST_NAME:
            raise ValueError(f"it has a name of {length} bytes, and {_LONGEST_NAME} are allowed")
        length, name = super()._get_str(offset)
        self._name = bytes(name).decode("utf-8", "replace")
        return length, name

    def _known(self, kind: Any) -> gguf.GGUFValueType:
        """The type of a value, or of the items of a list."""
        if int(kind) not in _VALUE_TYPES:
            raise ValueError(f"its entry {self._name!r} is of type {kind}, which GGUF has not")
        return gguf.GGUFValueType(int(kind))

    def _push_field(self, field: gguf.ReaderField, *rest: Any, **more: Any) -> int:
        if field.name in self.fields:
            raise ValueError(f"it has the entry {field.name!r} twice")
        return int(super()._push_field(field, *rest, **more))

    def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> Any:
        """A value, of which the library makes two arrays for every item: here they are one.

        A damaged length would also be counted up to, item by item.
        """
        if raw_type == _STRING:
            length = self._get(orig_offs, np.uint64)
            text = self._get(orig_offs + 8, np.uint8, length[0])
            return 8 + text.nbytes, [length, text], [1], [gguf.GGUFValueType.STRING]
        if raw_type != _ARRAY:
            return super()._get_field_parts(orig_offs, self._known(raw_type))
        item, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        begin = at = int(orig_offs) + 12
        self._require_in_file(at + int(count[0]))  # an item has at least one byte
        self._items += int(count[0])
        _refuse_more("gguf_items", self._items, "items in lists of its metadata")
        kind = self._known(item[0])
        types = [gguf.GGUFValueType.ARRAY, kind]
        if scalar := self.gguf_scalar_to_np.get(kind):
            values = self._get(at, scalar, count[0])
            return 12 + values.nbytes, [item, count, values], [2], types
        if kind != gguf.GGUFValueType.STRING:
            raise ValueError("it has an array of arrays, which no llama file needs")
        self._get(at, np.uint64, count[0])  # a string at least eight
        whole = memoryview(self.data)
        for _ in range(int(count[0])):
            self._reach(at + 8)
            at += 8 + int.from_bytes(whole[at : at + 8], "little")
        self._reach(at)
        return 12 + at - begin, [item, count, self.data[begin:at]], [2], types

    def _build_tensors(self, *arguments: Any) -> None:
        self._is_at_tensors = True
        super()._build_tensors(*arguments)
        self.tensors = [self._with_values(tensor) for tensor in self.tensors]

    def _with_values(self, tensor: gguf.ReaderTensor) -> gguf.ReaderTensor:
        """The tensor with the values that say what the model is, or with none."""
        if tensor.name != ROPE_FREQS:
            return tensor._replace(data=None)
        if tensor.n_bytes > _AHEAD:
            raise ValueError(f"{ROPE_FREQS} has {tensor.n_bytes} bytes: no model has so many")
        raw = np.empty(tensor.n_bytes, np.uint8)
        fill(self._stream, self._path, tensor.data_offset, as_bytes(raw))
        return tensor._replace(data=raw.view(tensor.data.dtype).reshape(tensor.data.shape))

    def _get_tensor_info_field(self, orig_offs: Any) -> Any:
        field = super()._get_tensor_info_field(orig_offs)
        if len(field.parts[3]) > _MOST_AXES:
            raise ValueError(f"tensor {field.name} has {len(field.parts[3])} axes")
        shape = [int(size) for size in field.parts[3]]
        if math.prod(shape) > _MOST_OF_A_BYTE * self._size:
            raise ValueError(
                f"tensor {field.name} has the shape {shape}, and the file {self._size} bytes: it "
                "is damaged"
            )
        self._require_in_file(int(field.parts[5][0]))  # where the tensor begins
        if int(field.parts[4][0]) not in _TENSOR_TYPES:
            raise ValueError(
                f"tensor {field.name} is of type {field.parts[4][0]}, which is unknown"
            )
        if field.name in self._names:  # now, and not after millions of them, as a run of zeros is
            raise ValueError(f"Found duplicated tensor with name {field.name}")
        self._names.add(field.name)
        return field


def metadata_of(reader: gguf.GGUFReader) -> dict[str, Any]:
    """The entries of a file's metadata.

    Raises:
        ValueError: a text that is not UTF-8.
    """
    values = {}
    for name, field in reader.fields.items():
        try:
            values[name] = _value(field)
        except UnicodeDecodeError as error:
            raise ValueError(f"its entry {name!r} is not UTF-8: {error}") from error
    return values


def _value(field: gguf.ReaderField) -> Any:
    if not field.types or field.types[-1] != gguf.GGUFValueType.STRING:
        return field.contents()
    raw = memoryview(field.parts[-1])
    if len(field.types) == 1:
        return str(raw, "utf-8")
    texts, at = [], 0
    while at < len(raw):
        end = at + 8 + int.from_bytes(raw[at : at + 8], "little")
        texts.append(str(raw[at + 8 : end], "utf-8"))
        at = end
    return texts


def _refuse_more(name: str, count: int, what: str) -> None:
    if count > (most := limit(name)):
        raise ValueError(f"it has {count} {what}, and {most} are allowed: {how_to_raise(name)}")


def open_gguf(source: Path) -> gguf.GGUFReader:
    """The file's metadata and what they say of its tensors, checked against its size.

    Raises:
        CheckpointError: it is not a little-endian GGUF file, or it is cut short or damaged.
    """
    refuse_lfs_pointer(source)
    with open_regular(source) as stream:
        head = stream.read(8)
        if head[:4] != b"GGUF":
            begins = f"it begins with {head[:4]!r}" if head else "it is empty"
            what = "GGUF file" if source.suffix.lower() == ".gguf" else "checkpoint"
            raise CheckpointError(source, f"is not a {what}: {begins}")
        if head[4:6] == b"\0\0":  # the version, a small number in four bytes
            raise CheckpointError(
                source, "is a big-endian GGUF file; only little-endian ones are read"
            )
        version = int.from_bytes(head[4:8], "little")
        if len(head) == 8 and version not in _VERSIONS:
            raise CheckpointError(
                source, f"is a GGUF file of version {version}; versions 2 and 3 are read"
            )
        with translated(source, "is not a readable GGUF file"):
            reader = _StrictReader(source, stream)
    faults, end, alignment = [], reader.data_offset, int(reader.alignment)  # else of 32 bits
    for tensor in reader.tensors:  # they lie one after the other, each aligned
        if tensor.data_offset != end:
            faults.append(
                f"tensor {tensor.name} begins at byte {tensor.data_offset}, expected {end}"
            )
        end = tensor.data_offset + -(-tensor.n_bytes // alignment) * alignment
    if faults:
        raise CheckpointError(source, faults)
    return reader


def shape_of(tensor: Any) -> tuple[int, ...]:
    """Rows first, as numpy has it; GGUF writes the axis that lies closest in memory first."""
    return tuple(int(size) for size in reversed(tensor.shape))
