"""The files of prepared data, their names and types, and the one error of this package.

    tokens.bin      uint16 or uint32: every token of every document, one after the other
    documents.bin   int64: where each document ends in tokens.bin
    counted.bin     uint8, only where there are chats: 1 = the loss counts this token
    data.json       what is in them, and where it came from
    validation/     the same four for the documents that were held out

All are little-endian.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from diy_core.errors import CheckpointError
from diy_core.system.outside import open_regular

FORMAT = 1
TOKENS, DOCUMENTS, COUNTED, DESCRIPTION = "tokens.bin", "documents.bin", "counted.bin", "data.json"
PARTS = (TOKENS, DOCUMENTS, DESCRIPTION)  # which all prepared data have
VALIDATION = "validation"
DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
ENDS, FLAGS = np.dtype("<i8"), np.dtype("u1")


def is_own(name: str) -> bool:
    """Whether a relative path is one of the files or directories of prepared data."""
    names = {*PARTS, COUNTED}
    return name == VALIDATION or name.removeprefix(f"{VALIDATION}/") in names


def are_prepared(names: Collection[str]) -> bool:
    """Whether a directory that holds these names is one of prepared data, or a part of it."""
    return set(PARTS) <= set(names)


class DataError(CheckpointError):
    """Sources or prepared data are missing something, hold something wrong, or cannot be read.

    All faults that were found are in `faults`; the message lists the first of them.
    """


def token_dtype(vocab_size: int) -> str:
    """The smaller of the two types that holds the ids 0 to vocab_size - 1."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


@contextlib.contextmanager
def data_errors() -> Iterator[None]:
    """Inside, errors of reading files are of this package."""
    try:
        yield
    except DataError:
        raise
    except CheckpointError as error:
        raise DataError(error.where, error.faults) from error


def file_hash(path: Path) -> str:
    """The sha256 of a file, in hexadecimal.

    Raises:
        DataError: it is not a file that can be read.
    """
    with data_errors(), open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def counted(number: int, what: str) -> str:
    """Such as `1 document` and `1,234 documents`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
