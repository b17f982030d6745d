"""The files in which finished shards are kept until all are there.

A file is written under another name, synced and renamed. It bears what it was made of and the sums
of its arrays, and is read only where both are right: whatever an earlier process left there, and
whatever became of it since, is not believed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import as_bytes
from diy_core.data.files import DataError
from diy_core.data.shards import Shard
from diy_core.data.sources import Part
from diy_core.errors import CheckpointError
from diy_core.system.disk import room_for
from diy_core.system.outside import open_regular
from diy_core.system.sources import Identity

# What to do on a full disk.
MORE_ROOM = "Free some there, then start again: the shards that are finished are kept"

_SEAL = "seal.json"
_LONGEST_SEAL = 4096  # bytes
_ARRAYS = tuple(field.name for field in dataclasses.fields(Shard))


class _Damaged(Exception):
    """What lies there is not what was written for this shard."""


@dataclasses.dataclass(frozen=True)
class ShardFile:
    """The file of one shard.

    Attributes:
        path: of the file, whether it is there or not.
        made_of: the sha256 of all that decides about its content: the settings, the parts, and the
            place among all shards.
    """

    path: Path
    made_of: str

    def save(self, shard: Shard) -> None:
        """Write it, whole or not at all.

        Raises:
            DiskFull: there is no room for it.
        """
        temporary = self.path.with_suffix(".tmp")
        arrays: dict[str, NDArray[Any]] = vars(shard)
        with room_for(self.path, sum(array.nbytes for array in arrays.values()), MORE_ROOM):
            try:
                temporary.unlink(missing_ok=True)  # whatever has that name is not written into
                with temporary.open("xb") as handle:
                    self._write(arrays, handle)
                    handle.flush()
                    os.fsync(handle.fileno())
                temporary.replace(self.path)
            finally:
                temporary.unlink(missing_ok=True)

    def load(self, *names: str) -> Shard:
        """Read it; if attributes are named, only those, and the others are empty.

        Raises:
            DataError: it is not what was written. It is removed then, as a new one is needed.
        """
        try:
            return self._read(names or _ARRAYS)
        except (_Damaged, CheckpointError) as error:
            self.path.unlink(missing_ok=True)
            raise DataError(
                self.path,
                f"was changed after it was written ({error}): start again, and it is made anew",
            ) from error

    def is_whole(self) -> bool:
        """Whether it is there, and all of it what was written for this shard."""
        try:
            self._read(_ARRAYS)
        except (_Damaged, CheckpointError):
            return False
        return True

    def _write(self, arrays: dict[str, NDArray[Any]], handle: Any) -> None:
        sums = {}
        with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                head, digest = io.BytesIO(), hashlib.sha256()
                form = np.lib.format.header_data_from_array_1_0(array)
                np.lib.format.write_array_header_1_0(head, form)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    for piece in (head.getvalue(), as_bytes(array)):
                        digest.update(piece)
                        entry.write(piece)
                sums[name] = digest.hexdigest()
            archive.writestr(_SEAL, json.dumps({"made_of": self.made_of, "sums": sums}))

    def _read(self, names: Sequence[str]) -> Shard:
        with open_regular(self.path) as handle:
            size = Identity.of(handle).size
            try:
                with zipfile.ZipFile(handle) as archive:
                    seal = json.loads(_member(archive, _SEAL, _LONGEST_SEAL))
                    if seal["made_of"] != self.made_of:
                        raise _Damaged("it is that of another shard")
                    found = {name: _array(archive, name, seal["sums"], size) for name in names}
            # What bytes that were changed by chance can do to these libraries.
            except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError) as error:
                raise _Damaged(str(error)) from error
            except (RuntimeError, NotImplementedError, EOFError) as error:
                raise _Damaged(str(error)) from error
        return Shard(**{name: found.get(name, np.empty(0, np.uint8)) for name in _ARRAYS})


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > most:
        raise _Damaged(f"{name} in it is packed, or too long")
    return archive.read(entry)


def _array(archive: zipfile.ZipFile, name: str, sums: dict[str, str], most: int) -> NDArray[Any]:
    content = _member(archive, f"{name}.npy", most)
    if hashlib.sha256(content).hexdigest() != sums[name]:
        raise _Damaged(f"{name} in it has another sha256")
    head = io.BytesIO(content)
    np.lib.format.read_magic(head)
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    return np.frombuffer(content, dtype, offset=head.tell()).reshape(shape)


def shard_files(folder: Path, settings: str, shards: Sequence[Sequence[Part]]) -> list[ShardFile]:
    """The files of all shards.

    Args:
        folder: where they are kept.
        settings: all that decides about the bytes of a shard beside its parts.
        shards: the parts of each.
    """
    digest = hashlib.sha256(settings.encode()).hexdigest()
    return [
        ShardFile(folder / f"{i:08d}.npz", _made_of([digest, i, *map(str, parts)]))
        for i, parts in enumerate(shards)
    ]


def _made_of(values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
