"""Shards to the final files, with the validation documents taken out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diy_core.checkpoints.dtypes import as_bytes
from diy_core.data import files
from diy_core.data.files import DataError, counted
from diy_core.data.shard_files import ShardFile
from diy_core.data.sources import SOURCES
from diy_core.system.utf8 import writable


def merge(
    shards: Sequence[ShardFile],
    out: Path,
    validation: float,
    description: dict[str, Any],
    report: dict[str, Any],
) -> None:
    """Write the files of `diy_core.data.files` into `out`, which exists and is empty.

    Args:
        shards: the files of all shards, in order.
        out: for the training documents; the others go to its `validation`.
        validation: the share of the documents held out.
        description: what `data.json` holds beside the counts.
        report: of all documents; `out` has it, and its `validation` has none.

    Raises:
        DataError: no documents, or too few to hold any out.
    """
    heads = [shard.load("lengths", "hashes") for shard in shards]
    hashes = np.concatenate([np.empty(0, np.uint64), *(head.hashes for head in heads)])
    if hashes.size == 0:
        silent = "the tokenizer has no token for anything in the texts: take another"
        empty = "every text is empty or white space"
        fault = silent if report["without_tokens"] else empty
        raise DataError(SOURCES, f"hold no documents: {fault}")
    held_out = _held_out(hashes, validation)
    chats = any(shard.load("counted").counted.size for shard in shards)
    _write(out, shards, ~held_out, chats, description | {"report": report})
    if held_out.any():
        folder = out / files.VALIDATION
        folder.mkdir()
        _write(folder, shards, held_out, chats, description)


def _held_out(hashes: NDArray[np.uint64], share: float) -> NDArray[np.bool_]:
    """Which documents are for validation: at least one, and never all."""
    if share == 0:
        return np.zeros(hashes.size, dtype=bool)
    count = max(1, round(share * hashes.size))
    chosen: NDArray[np.bool_] = hashes <= np.partition(hashes, count - 1)[count - 1]
    if chosen.all():
        different = len(np.unique(hashes))
        alike = f", {different} of them different" if hashes.size > 1 else ""
        raise DataError(
            SOURCES,
            f"{counted(hashes.size, 'document')}{alike}: too few for a validation share of "
            f"{share}. Give what separates the documents of a text file (separator=TEXT), more "
            "documents, or a share of 0",
        )
    return chosen


def _write(
    out: Path,
    shards: Sequence[ShardFile],
    chosen: NDArray[np.bool_],
    chats: bool,
    description: dict[str, Any],
) -> None:
    tokens = documents = counted = 0
    largest, longest = 0, 0
    dtype = files.token_dtype(description["vocab_size"])
    with ExitStack() as stack:
        names = [files.TOKENS, files.DOCUMENTS, *([files.COUNTED] if chats else [])]
        written = {name: stack.enter_context(_Summed(out / name)) for name in names}
        for ids, flags, lengths in _selected(shards, chosen):
            ends = np.cumsum(lengths)
            written[files.TOKENS].write(ids, files.DTYPES[dtype])
            written[files.DOCUMENTS].write(tokens + ends, files.ENDS)
            if chats:
                every = np.ones(ids.size, files.FLAGS) if flags is None else flags
                written[files.COUNTED].write(every, files.FLAGS)
            # The first token of a document is never predicted.
            if flags is None:
                counted += ids.size - lengths.size
            else:
                counted += int(flags.sum() - flags[ends - lengths].sum())
            tokens, documents = tokens + ids.size, documents + lengths.size
            largest = max(largest, int(ids.max(initial=0)))
            longest = max(longest, int(lengths.max(initial=0)))
    values: dict[str, Any] = {
        "format": files.FORMAT,
        "dtype": dtype,
        "tokens": tokens,
        "documents": documents,
        "counted": counted,
        "largest_id": largest,
        "longest_document": longest,
        **description,
        "files": {
            name: {"bytes": file.size, "sha256": file.digest.hexdigest()}
            for name, file in written.items()
        },
    }
    text = json.dumps(_writable(values), indent=2, ensure_ascii=False) + "\n"
    (out / files.DESCRIPTION).write_text(text, encoding="utf-8")


def _writable(value: Any) -> Any:
    """The value with names of columns that hold half of a character as text can show them."""
    if isinstance(value, Mapping):
        return {_writable(name): _writable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_writable(item) for item in value]
    return writable(value) if isinstance(value, str) else value


def _selected(
    shards: Sequence[ShardFile], chosen: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[Any], NDArray[np.uint8] | None, NDArray[np.int64]]]:
    """Of each shard: the tokens, flags (None: all count) and lengths of the chosen documents."""
    first = 0
    for file in shards:
        shard = file.load()
        here = chosen[first : first + shard.lengths.size]
        first += shard.lengths.size
        flags = shard.counted if shard.counted.size else None
        if here.all():  # as nearly always without validation: nothing is copied
            yield shard.tokens, flags, shard.lengths
            continue
        each = np.repeat(here, shard.lengths)
        yield shard.tokens[each], None if flags is None else flags[each], shard.lengths[here]


class _Summed:
    """A new file, of which the size and the sum are known when it is written."""

    def __init__(self, path: Path) -> None:
        self.size, self.digest = 0, hashlib.sha256()
        self._file = path.open("xb")

    def __enter__(self) -> _Summed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, array: NDArray[Any], dtype: np.dtype[Any]) -> None:
        """Append an array as that type."""
        content = as_bytes(array.astype(dtype, copy=False))
        self._file.write(content)
        self.digest.update(content)
        self.size += len(content)
