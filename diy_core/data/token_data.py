"""Prepared data, opened: token files as memory maps, checked against their description."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.data import files
from diy_core.data.files import DataError
from diy_core.errors import CheckpointError
from diy_core.tokenizer_files import read_json

_COUNTS = ("tokens", "documents", "counted", "largest_id", "vocab_size", "longest_document")


class TokenData:
    """The documents of a directory that `prepare` wrote.

    Opening reads `data.json` and the ends of the documents, and maps the rest.

    Args:
        path: the directory, or its `validation`.

    Attributes:
        path: where it is.
        description: what `data.json` holds.
        tokens: uint16 or uint32, one after the other, a read-only memory map.
        ends: int64, where each document ends in `tokens`.
        counted: uint8, as many as tokens: 1 = the loss counts this token; None: every one.
        report: what was read of the sources, what was passed over and why: see
            `diy_core.data.report`. None for validation data, and in data of earlier versions.
        hash: the sha256 of `data.json`, which holds those of the other files. It names the data.

    Raises:
        DataError: no prepared data there, a later format, or files that do not fit `data.json`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / files.DESCRIPTION
        if not file.is_file():
            raise DataError(
                self.path, f"has no {files.DESCRIPTION}: prepare the data first (the data command)"
            )
        self.description = _description(file)
        self.report: dict[str, Any] | None = self.description.get("report")
        self.hash = files.file_hash(file)
        self._check_sizes()
        dtype = files.DTYPES[self.description["dtype"]]
        self.tokens: NDArray[np.unsignedinteger] = self._map(files.TOKENS, dtype)
        self.ends: NDArray[np.int64] = np.fromfile(self.path / files.DOCUMENTS, files.ENDS)
        self.counted: NDArray[np.uint8] | None = None
        if files.COUNTED in self.description["files"]:
            self.counted = self._map(files.COUNTED, files.FLAGS)
        lengths = np.diff(self.ends, prepend=0)
        if lengths.min() < 1 or self.ends[-1] != self.tokens.size:
            raise DataError(
                self.path / files.DOCUMENTS,
                f"is damaged: the ends must rise up to {self.tokens.size} tokens. {_AGAIN}",
            )

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.ends)

    def __getitem__(self, index: int) -> NDArray[np.unsignedinteger]:
        """The tokens of one document, int 0 to len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        start = self.ends[index - 1] if index else 0
        return self.tokens[start : self.ends[index]]

    def require(self, vocab_size: int, tokenizer: str | None = None) -> None:
        """Check that a model can be trained on this data.

        Args:
            vocab_size: of the model.
            tokenizer: the model's `tokenizer_hash`; None: not known, only the ids are checked.

        Raises:
            DataError: another tokenizer, or ids beyond the vocabulary.
        """
        own, largest = self.description["tokenizer"], self.description["largest_id"]
        if tokenizer is not None and tokenizer != own:
            raise DataError(
                self.path,
                f"was tokenised with {_named(own)}, the model has {_named(tokenizer)}: prepare "
                "the data again with the tokenizer of the model's directory",
            )
        if largest >= vocab_size:
            raise DataError(
                self.path,
                f"holds token id {largest}, the model's vocab_size is {vocab_size}: prepare the "
                "data with the model's tokenizer, or give the model a vocab_size of "
                f"{self.description['vocab_size']}",
            )

    def verify(self) -> None:
        """Read every byte and compare it with the sha256 of `data.json`.

        Raises:
            DataError: the files that differ, all of them.
        """
        told = self.description["files"]
        faults = [
            f"{name} has sha256 {found}, {files.DESCRIPTION} says {_sum(told.get(name))}. {_AGAIN}"
            for name in self._names
            if (found := files.file_hash(self.path / name)) != _sum(told.get(name))
        ]
        if faults:
            raise DataError(self.path, faults)

    @property
    def nbytes(self) -> int:
        """The size of the files that `verify` reads."""
        return sum((self.path / name).stat().st_size for name in self._names)

    @property
    def _names(self) -> list[str]:
        """The files that are read, whatever else the description names."""
        counted = [] if self.counted is None else [files.COUNTED]
        return [files.TOKENS, files.DOCUMENTS, *counted]

    def _map(self, name: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        # A plain view: slicing the subclass costs several times as much.
        return np.asarray(np.memmap(self.path / name, dtype=dtype, mode="r"))

    def _check_sizes(self) -> None:
        told = self.description
        sizes = {
            files.TOKENS: told["tokens"] * files.DTYPES[told["dtype"]].itemsize,
            files.DOCUMENTS: told["documents"] * files.ENDS.itemsize,
        }
        if files.COUNTED in told["files"]:
            sizes[files.COUNTED] = told["tokens"]
        faults = []
        for name, size in sizes.items():
            file = self.path / name
            found = file.stat().st_size if file.is_file() else None
            if found != size:
                has = "is missing" if found is None else f"has {found} bytes"
                faults.append(f"{name} {has}, {files.DESCRIPTION} says {size}. {_AGAIN}")
        if faults:
            raise DataError(self.path, faults)


_AGAIN = "Copy or prepare the data again"


def _sum(entry: object) -> str:
    """The sha256 of a file's entry; a damaged description may have none."""
    return str(entry.get("sha256")) if isinstance(entry, dict) else "nothing"


def _named(tokenizer: str) -> str:
    return tokenizer if tokenizer == "bytes" else f"the tokenizer.json of sha256 {tokenizer}"


def _description(file: Path) -> dict[str, Any]:
    try:
        values = read_json(file)
    except CheckpointError as error:
        raise DataError(error.where, error.faults) from error
    if values.get("format") != files.FORMAT:
        raise DataError(
            file,
            f"is of format {values.get('format')!r}, this program reads {files.FORMAT}: prepare "
            "the data again",
        )
    faults = [
        f"{name} must be a whole number, 0 or more, got {values.get(name)!r}"
        for name in _COUNTS
        if type(values.get(name)) is not int or values[name] < 0
    ]
    if values.get("dtype") not in files.DTYPES:
        faults.append(
            f"dtype must be one of {', '.join(files.DTYPES)}, got {values.get('dtype')!r}"
        )
    if not isinstance(values.get("tokenizer"), str) or not isinstance(values.get("files"), dict):
        faults.append("tokenizer or files is missing")
    elif not faults and not (values["tokens"] and values["documents"]):
        faults.append("holds no documents")
    if faults:
        raise DataError(file, faults)
    return values
