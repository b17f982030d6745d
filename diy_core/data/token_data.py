"""Prepared data, opened: its files are read in parts, and checked against their description."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.data import files
from diy_core.data.files import DataError
from diy_core.system.array_file import ArrayFile
from diy_core.system.outside import is_there, read_bytes
from diy_core.system.parsing import parse_object
from diy_core.system.places import as_path
from diy_core.system.sources import unchanged_sources

_NEEDED = (files.TOKENS, files.DOCUMENTS)
_COUNTS = ("tokens", "documents", "counted", "largest_id", "vocab_size", "longest_document")


class TokenData:
    """The documents of a directory that `prepare` wrote.

    Opening reads `data.json` and the ends of the documents; all files stay open.

    Args:
        path: the directory, or its `validation`.

    Attributes:
        path: where it is.
        description: what `data.json` holds.
        tokens: uint16 or uint32, one after the other; parts are read as they are asked for.
        ends: int64, where each document ends in `tokens`.
        counted: uint8, as many as tokens: 1 = the loss counts this token; None: every one.
        report: what was read of the sources, what was passed over and why: see
            `diy_core.data.report`. None for validation data, and in data of earlier versions.
        hash: the sha256 of `data.json`, which holds those of the other files. It names the data.

    Raises:
        DataError: no prepared data there, a later format, or files that do not fit `data.json`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = as_path(path)
        with files.data_errors(), unchanged_sources():
            self._open()
            self.ends: NDArray[np.int64] = self._files[files.DOCUMENTS][:]
        lengths = np.diff(self.ends, prepend=0)
        if lengths.min() < 1 or self.ends[-1] != self.tokens.size:
            raise DataError(
                self.path / files.DOCUMENTS,
                f"is damaged: the ends must rise up to {self.tokens.size} tokens. {_AGAIN}",
            )

    def _open(self) -> None:
        file = self.path / files.DESCRIPTION
        if not is_there(file):
            raise DataError(
                self.path, f"has no {files.DESCRIPTION}: prepare the data first (the data command)"
            )
        content = read_bytes(file)
        self.description = _description(file, content)
        self.report: dict[str, Any] | None = self.description.get("report")
        self.hash = hashlib.sha256(content).hexdigest()
        types = {
            files.TOKENS: files.DTYPES[self.description["dtype"]],
            files.DOCUMENTS: files.ENDS,
            files.COUNTED: files.FLAGS,
        }
        names = [name for name in types if name in self.description["files"] or name in _NEEDED]
        self._files = {
            name: ArrayFile(self.path / name, types[name])
            for name in names
            if is_there(self.path / name)
        }
        self._check_sizes(names)
        self.tokens = self._files[files.TOKENS]
        self.counted = self._files.get(files.COUNTED)

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.ends)

    def __getitem__(self, index: int) -> NDArray[np.unsignedinteger]:
        """The tokens of one document, int 0 to len - 1."""
        if not 0 <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        start = self.ends[index - 1] if index else 0
        part: NDArray[np.unsignedinteger] = self.tokens[start : self.ends[index]]
        return part

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
        with files.data_errors():
            found = {name: file.sha256() for name, file in self._files.items()}
        faults = [
            f"{name} has sha256 {digest}, {files.DESCRIPTION} says {_sum(told.get(name))}. {_AGAIN}"
            for name, digest in found.items()
            if digest != _sum(told.get(name))
        ]
        if faults:
            raise DataError(self.path, faults)

    @property
    def nbytes(self) -> int:
        """The size of the files that `verify` reads."""
        return sum(file.nbytes for file in self._files.values())

    def _check_sizes(self, names: Sequence[str]) -> None:
        told = self.description
        sizes = {
            files.TOKENS: told["tokens"] * files.DTYPES[told["dtype"]].itemsize,
            files.DOCUMENTS: told["documents"] * files.ENDS.itemsize,
            files.COUNTED: told["tokens"],
        }
        faults = []
        for name in names:
            size = sizes[name]
            found = self._files[name].nbytes if name in self._files else None
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


def _description(file: Path, content: bytes) -> dict[str, Any]:
    values = parse_object(content, file)
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
