"""GGUF files, opened strictly: `gguf.GGUFReader` believes what a damaged file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from diy_core.errors import CheckpointError
from diy_core.lfs import refuse_lfs_pointer

_ARRAY = int(gguf.GGUFValueType.ARRAY)


class _StrictReader(gguf.GGUFReader):
    """GGUFReader, which reads beyond the end of a file in silence, made to say so."""

    data: Any

    def __init__(self, path: Path) -> None:
        self._names: set[str] = set()
        super().__init__(path)

    def _get(self, offset: Any, dtype: Any, count: Any = 1, *rest: Any, **more: Any) -> Any:
        # Slices of np.memmap are ten times slower than those of an array over the same memory.
        self.data = np.asarray(self.data)
        end = int(offset) + np.dtype(dtype).itemsize * int(count)
        if end > len(self.data):
            raise ValueError(
                f"the file ends at byte {len(self.data)}, and what it describes at byte {end}: "
                "it is cut short or damaged"
            )
        return super()._get(offset, dtype, count, *rest, **more)

    def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> Any:
        """The library makes two arrays of every item of an array, which here are one, or a slice.

        A damaged length would also be counted up to, item by item.
        """
        if raw_type != _ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        item, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        begin = at = int(orig_offs) + 12
        self._get(at, np.uint8, count[0])  # an item has at least one byte
        kind = gguf.GGUFValueType(item[0])
        if scalar := self.gguf_scalar_to_np.get(kind):
            values = self._get(at, scalar, count[0])
            return 12 + values.nbytes, [item, count, values], [2], [gguf.GGUFValueType.ARRAY, kind]
        if kind != gguf.GGUFValueType.STRING:
            raise ValueError("it has an array of arrays, which no llama file needs")
        self._get(at, np.uint64, count[0])  # a string at least eight
        parts, whole = [item, count], memoryview(self.data)
        for _ in range(int(count[0])):
            length = int.from_bytes(whole[at : at + 8], "little")
            if at + 8 + length > len(whole):
                self._get(at + 8, np.uint8, length)  # raises
            parts.append(self.data[at + 8 : at + 8 + length])
            at += 8 + length
        data = list(range(2, len(parts)))
        return 12 + at - begin, parts, data, [gguf.GGUFValueType.ARRAY, kind]

    def _get_tensor_info_field(self, orig_offs: Any) -> Any:
        field = super()._get_tensor_info_field(orig_offs)
        if field.name in self._names:  # now, and not after millions of them, as a run of zeros is
            raise ValueError(f"Found duplicated tensor with name {field.name}")
        self._names.add(field.name)
        return field


def open_gguf(source: Path) -> gguf.GGUFReader:
    """The file's metadata and tensors (memory-mapped), checked against its size.

    Raises:
        CheckpointError: it is no little-endian GGUF file, or it is cut short or damaged.
    """
    if not source.is_file():
        raise CheckpointError(source, "is not a file")
    refuse_lfs_pointer(source)
    with source.open("rb") as stream:
        head = stream.read(8)
    if head[:4] != b"GGUF":
        begins = f"it begins with {head[:4]!r}" if head else "it is empty"
        raise CheckpointError(source, f"is not a GGUF file: {begins}")
    if head[4:6] == b"\0\0":  # the version, a small number in four bytes
        raise CheckpointError(source, "is a big-endian GGUF file; only little-endian ones are read")
    try:
        reader = _StrictReader(source)
    except Exception as error:  # damaged bytes surface as exceptions of many kinds
        raise CheckpointError(source, f"is no readable GGUF file: {error!s}") from error
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
