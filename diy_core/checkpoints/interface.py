"""What every checkpoint format offers: tensors read when they are asked for, written one by one.

Readers hand tensors out, and writers take them, in one form: under their Hugging Face names, in the
Hugging Face layout, as numpy arrays. What a format does differently (transposed kernels, reordered
rows, other names) happens inside its reader and its writer, so that n formats need n of each.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import fault_of_values
from diy_core.checkpoints.manifest import Manifest
from diy_core.config import DIYConfig
from diy_core.errors import CheckpointError
from diy_core.mapping import TIED_EMBEDDING, TIED_HEAD
from diy_core.system.sources import Sources

GROUP = 32 << 20  # bytes: tensors are read and written in groups of about this size


@dataclasses.dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint.

    Attributes:
        shape: in the Hugging Face layout.
        dtype: in which it is read or written.
        form: what the format calls it in the file (`F32`, `Q4_1`, `float32`).
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    form: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as an array."""
        return math.prod(self.shape) * self.dtype.itemsize


class Reader(abc.ABC):
    """A checkpoint whose tensors are read when they are asked for.

    Opening one checks names, shapes and dtypes against the config; values are checked as they are
    read. A subclass sets the attributes and defines `_read` and `_copy_side_files`; it opens files
    while `sources` records.

    Attributes:
        kind: `hf`, `orbax` or `gguf`.
        path: the directory or file.
        config: of the model.
        stored: every tensor by Hugging Face name, in the order of the forward pass.
        notes: what a user should know about how it was read.
        group: bytes of tensors that are best read together.
        sums_in_place: whether `sum_of` gives sums without holding tensors.
    """

    kind: ClassVar[str]
    group: int = GROUP
    sums_in_place: ClassVar[bool] = False

    def __init__(
        self,
        path: Path,
        config: DIYConfig,
        stored: Mapping[str, Stored],
    ) -> None:
        self.path, self.config = path, config
        self.stored = dict(stored)
        self.notes: list[str] = list(config.notes)
        self._copies: dict[str, str] = {}  # tensors that are read as another one

    @functools.cached_property
    def sources(self) -> Sources:
        """The files that were read, to be held against what is there at the end."""
        return Sources()

    @property
    def name(self) -> str:
        """What the manifest of a copy says of its source."""
        name = self.path.absolute().name.encode("utf-8", "replace").decode()
        return f"{self.kind} {name}"

    @property
    def files(self) -> Sequence[Path]:
        """The files and directories that the checkpoint consists of."""
        return [self.path]

    def called(self, name: str) -> str:
        """What the format calls the tensor of this Hugging Face name, for messages."""
        return name

    @abc.abstractmethod
    def _read(self, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Some tensors, unchecked."""

    def _find_manifest(self) -> Manifest | None:
        return None

    @functools.cached_property
    def manifest(self) -> Manifest | None:
        """The sums that came with the checkpoint, or None.

        Raises:
            CheckpointError: they cannot be read.
        """
        with self.sources.recording():
            return self._find_manifest()

    def copy_side_files(self, to: Path) -> None:
        """Write the tokenizer and generation files of the model into a directory.

        Raises:
            CheckpointError: one of them cannot be read.
        """
        with self.sources.recording():
            self._copy_side_files(to)

    @abc.abstractmethod
    def _copy_side_files(self, to: Path) -> None:
        """The same, of one format."""

    def read_group(self, names: Sequence[str], *, finite: bool = True) -> dict[str, NDArray[Any]]:
        """Some tensors by name, in the Hugging Face layout.

        Args:
            names: which.
            finite: False leaves out the search for values that are not finite, where sums are
                compared anyway.

        Raises:
            CheckpointError: bytes that cannot be read, values that are not finite, or a file that
                is another one than when the checkpoint was opened.
        """
        with self.sources.recording():
            arrays = self._read(list({self._copies.get(name, name): None for name in names}))
        faults = [
            f"tensor {self.called(name)} {fault}"
            for name, array in arrays.items()
            if finite and (fault := fault_of_values(array))
        ]
        if faults:
            raise CheckpointError(self.path, faults)
        return {name: arrays[self._copies.get(name, name)] for name in names}

    def read(self, name: str) -> NDArray[Any]:
        """One tensor; raises as `read_group` does."""
        return self.read_group([name])[name]

    def read_all(self, verify: bool = False) -> Iterator[tuple[str, NDArray[Any]]]:
        """Every tensor, in the order of the forward pass.

        Args:
            verify: compare each with its SHA-256 in the manifest.

        Raises:
            CheckpointError: as `read_group`; with `verify`, no manifest, or another tensor; after
                the last one, that files were changed or replaced meanwhile.
        """
        if verify:
            self.require_manifest()
        for group in groups(self.stored, self.group):
            arrays = self.read_group(group)
            for name in group:
                array = arrays.pop(name)
                if verify and (fault := self.fault(name, array)):
                    self.sources.require_unchanged()  # or that is what is wrong with it
                    raise CheckpointError(self.path, fault)
                yield name, array
        self.sources.require_unchanged()

    def sum_of(self, name: str) -> str | None:
        """The SHA-256 of a tensor without holding it; None where a format cannot do that.

        Raises:
            CheckpointError: bytes that cannot be read.
        """
        with self.sources.recording():
            return self._sum_of(self._copies.get(name, name))

    def _sum_of(self, name: str) -> str | None:
        return None

    def fault(self, name: str, array: NDArray[Any], digest: str | None = None) -> str | None:
        """What is wrong with a tensor by the manifest, or None; `digest` saves computing it."""
        return self.require_manifest().check(self._copies.get(name, name), array, digest)

    def require_manifest(self) -> Manifest:
        """The manifest, which must name just the tensors that there are.

        Raises:
            CheckpointError: there is none, or it is of other weights.
        """
        if self.manifest is None:
            raise CheckpointError(
                self.path,
                "has no manifest to verify against: `parity convert` and save_pretrained write one",
            )
        other = (set(self.stored) - set(self._copies)) ^ set(self.manifest.tensors)
        if other:
            raise CheckpointError(
                self.path, f"the manifest is of other weights: see tensor {sorted(other)[0]}"
            )
        return self.manifest

    def untie(self) -> None:
        """Give a model whose head is its embedding a head of its own, equal to the embedding."""
        if self.config.tie_word_embeddings:
            self.config = dataclasses.replace(self.config, tie_word_embeddings=False)
            self.stored[TIED_HEAD] = self.stored[TIED_EMBEDDING]
            self._copies[TIED_HEAD] = TIED_EMBEDDING


class Writer(contextlib.AbstractContextManager["Writer"]):
    """A checkpoint that is written tensor by tensor and appears whole, or not at all.

        with HFWriter(path, source, layout) as writer:
            writer.write({name: writer.prepare(name, array), ...})    # in the order of the layout
            written = writer.finish(manifest)
            ...                                 # read `written` back, raise if it is wrong

    Leaving the block without an error syncs everything to the disk and renames it into place.
    A subclass enters what must be left on `self._stack`, and defines `write` and `finish`.

    Attributes:
        group: bytes of tensors that are best written together.
    """

    kind: ClassVar[str]
    group: int = GROUP

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()

    def prepare(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """A tensor as it goes to the file; called in threads, ahead of writing."""
        return array

    @abc.abstractmethod
    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write some prepared tensors; all of them together follow the order of the layout."""

    @abc.abstractmethod
    def finish(self, manifest: Manifest) -> Reader:
        """Write all else, and open what stands there, still under its temporary name."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def groups(stored: Mapping[str, Stored], limit: int) -> Iterator[list[str]]:
    """Names in their order, in groups of at most `limit` bytes, or of one tensor."""
    group: list[str] = []
    size = 0
    for name, tensor in stored.items():
        if group and size + tensor.nbytes > limit:
            yield group
            group, size = [], 0
        group.append(name)
        size += tensor.nbytes
    if group:
        yield group
