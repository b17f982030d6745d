"""A GGUF file, or all parts of one that was split: `NAME-00001-of-00003.gguf` and its like.

llama-gguf-split and llama.cpp's converter write such parts. The first has the metadata; each says
its number, how many there are, and how many tensors all of them hold.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diy_core.checkpoints.gguf.file import metadata_of, open_gguf
from diy_core.errors import CheckpointError
from diy_core.system.outside import is_there

_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclasses.dataclass(frozen=True)
class Parts:
    """What all parts hold together.

    Attributes:
        files: the parts, in order; one where the file is whole.
        metadata: the entries of the first, without those about the split.
        tensors: what the gguf library says of each, by name.
        places: the file of each, by name.
    """

    files: list[Path]
    metadata: dict[str, Any]
    tensors: dict[str, Any]
    places: dict[str, Path]


def open_parts(path: Path) -> Parts:
    """A GGUF file and, where it is one part of several, the others beside it.

    Args:
        path: the file, or any part.

    Raises:
        CheckpointError: it cannot be read, a part is missing, or one does not belong to the others.
        ValueError, NotImplementedError, RecursionError: metadata that cannot be read.
    """
    given = open_gguf(path)
    metadata = metadata_of(given)
    count = metadata.get(_COUNT, 1)
    files = [path] if count in (0, 1) else _names(path, metadata, count)
    readers = {file: given if file == path else open_gguf(file) for file in files}
    entries = {file: metadata if file == path else metadata_of(readers[file]) for file in files}
    if faults := _contradictions(files, entries) if len(files) > 1 else []:
        raise CheckpointError(path, faults)
    tensors: dict[str, Any] = {}
    places: dict[str, Path] = {}
    for file, reader in readers.items():
        for tensor in reader.tensors:
            if tensor.name in tensors:
                faults.append(
                    f"tensor {tensor.name} is in {places[tensor.name].name} and in {file.name}"
                )
            tensors[tensor.name], places[tensor.name] = tensor, file
    total = metadata.get(_TENSORS)
    if len(files) > 1 and not faults and total is not None and total != len(tensors):
        faults.append(f"its parts hold {len(tensors)} tensors, and {_TENSORS} is {total}")
    if faults:
        raise CheckpointError(path, faults)
    first = {key: value for key, value in entries[files[0]].items() if not key.startswith("split.")}
    return Parts(files, first, tensors, places)


def _names(path: Path, metadata: Mapping[str, Any], count: Any) -> list[Path]:
    """The files of all parts, which must be there."""
    number = metadata.get(_NUMBER)
    if not isinstance(count, int) or not isinstance(number, int) or not 0 <= number < count:
        raise CheckpointError(path, f"{_NUMBER} is {number!r} and {_COUNT} is {count!r}")
    usual = f"NAME-{number + 1:05d}-of-{count:05d}.gguf"
    named = _NAME.fullmatch(path.name)
    if named is None or (int(named[2]), int(named[3])) != (number + 1, count):
        raise CheckpointError(
            path,
            f"is part {number + 1} of {count} of one model, and the others are found by its name: "
            f"call it {usual}",
        )
    files = [path.with_name(f"{named[1]}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    if missing := [file.name for file in files if not is_there(file)]:
        raise CheckpointError(
            path,
            f"is one of {count} parts of a split model, and {', '.join(missing[:3])} "
            f"{'is' if len(missing) == 1 else 'are'} not beside it: get all of them",
        )
    return files


def _contradictions(files: list[Path], entries: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """What the parts say differently, each of which has to follow from the first and its name."""
    first = entries[files[0]]
    faults = []
    for number, file in enumerate(files):
        expected = {**first, _NUMBER: number, _COUNT: len(files)}
        faults += [
            f"{file.name}: {key} is {value!r}, expected {expected[key]!r}: it is a part of another "
            "model"
            for key, value in entries[file].items()
            if key in expected
            and key not in ("GGUF.kv_count", "GGUF.tensor_count")
            and value != expected[key]
        ]
        faults += [
            f"{file.name}: has no {key}, as a part has"
            for key in (_NUMBER, _COUNT)
            if key not in entries[file]
        ]
    return faults
