"""Which files are read, and how they are cut into shards of work.

The cut depends on the bytes of the sources alone. So the shards, and with them every byte that is
written, are the same for any number of workers.
"""

from __future__ import annotations

import glob
import hashlib
import json
import mmap
import pydoc_data.topics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diy_core.data.files import DataError, file_hash

BUILTIN = "builtin:pydoc"
SOURCES = "sources"  # where a fault is that no single file has
_KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_KINDS[".parquet"] = "parquet"
_PACKED = {".gz", ".zst", ".xz", ".bz2", ".zip", ".tar"}
SHARD_BYTES = 4 << 20  # seconds of work: what a killed run loses, and what Ctrl-C waits for
_LONGEST_DOCUMENT = 256 << 20  # a document is tokenised in memory, at about 100 bytes a token


@dataclass(frozen=True)
class Part:
    """A stretch of one source: bytes `start` to `stop`, or the row group `start` of a parquet."""

    path: str
    kind: str
    start: int
    stop: int
    size: int  # bytes


@dataclass(frozen=True)
class Source:
    """One file: its name as it was given, its sha256 and its size in bytes."""

    path: str
    sha256: str
    bytes: int


def builtin_documents() -> list[str]:
    """The help texts of Python's language reference, about 465 KB of English."""
    topics: dict[str, str] = pydoc_data.topics.topics
    return [topics[name] for name in sorted(topics)]


def with_escapes(separator: str) -> str:
    r"""A separator as it is typed: `\n`, `\r` and `\t` mean what they mean in most languages."""
    for typed, meant in ((r"\n", "\n"), (r"\r", "\r"), (r"\t", "\t")):
        separator = separator.replace(typed, meant)
    return separator


def find(sources: str | Path | Sequence[str | Path]) -> list[str]:
    """The files behind names, patterns and directories: each file once, in a fixed order.

    A directory stands for the files below it whose ending is known; a pattern (`**` too) for what
    it matches, sorted.

    Raises:
        DataError: a name or pattern without files.
    """
    found: dict[Path | str, str] = {}
    faults = []
    for source in [sources] if isinstance(sources, (str, Path)) else sources:
        name = str(source)
        if name == BUILTIN:
            found[name] = name
            continue
        if Path(name).is_dir():
            files = [p for p in sorted(Path(name).rglob("*")) if p.suffix.lower() in _KINDS]
        elif Path(name).exists():
            files = [Path(name)]
        else:
            files = [Path(match) for match in sorted(glob.glob(name, recursive=True))]
        files = [file for file in files if file.is_file()]
        if not files:
            wanted = f"no file ending in {', '.join(_KINDS)}" if Path(name).is_dir() else "no file"
            faults.append(f"{wanted} at {name}")
        for file in files:
            found.setdefault(file.resolve(), file.as_posix())
    if faults or not found:
        raise DataError(SOURCES, faults or "none were given")
    return list(found.values())


def plan(paths: Sequence[str], separator: str | None) -> tuple[list[Source], list[list[Part]]]:
    """Hash the files and cut them into shards of about `SHARD_BYTES`.

    Args:
        paths: from `find`.
        separator: what stands between the documents of a text file; None: each is one document.

    Raises:
        DataError: files that are empty or of a kind that cannot be read; all of them.
    """
    sources, shards, faults = [], [], []
    shard: list[Part] = []
    size = 0
    for path in paths:
        try:
            source, parts = _cut(path, separator)
        except DataError as error:
            faults += [f"{path}: {fault}" for fault in error.faults]
            continue
        sources.append(source)
        for part in parts:
            shard.append(part)
            size += part.size
            if size >= SHARD_BYTES:
                shards.append(shard)
                shard, size = [], 0
    if faults:
        raise DataError(SOURCES, faults)
    return sources, [*shards, shard] if shard else shards


def unused(paths: Sequence[str], separator: str) -> str | None:
    """What there is to say of a separator that separates nothing; None: each text file has it.

    Args:
        paths: of `plan`, which has refused empty ones.
        separator: what stands between the documents of a text file.
    """
    texts = [path for path in paths if path != BUILTIN and _kind(path) == "text"]
    if not texts:
        return f"separator {separator!r} is not used: no source is a text file"
    without = [path for path in texts if not _holds(Path(path), separator.encode())]
    if not without:
        return None
    if len(texts) == 1:
        return f"separator {separator!r} is not in {texts[0]}: it is one document"
    more = f" and {len(without) - 1} more" if without[1:] else ""
    return (
        f"separator {separator!r} is not in {without[0]}{more}, of {len(texts)} text files: one "
        "document for each"
    )


def _holds(file: Path, between: bytes) -> bool:
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return view.find(between) >= 0


def _kind(path: str) -> str:
    return _KINDS.get(Path(path).suffix.lower(), "text")


def _cut(path: str, separator: str | None) -> tuple[Source, list[Part]]:
    if path == BUILTIN:
        content = json.dumps(builtin_documents()).encode()
        source = Source(path, hashlib.sha256(content).hexdigest(), len(content))
        return source, [Part(path, "builtin", 0, 0, len(content))]
    file, suffix = Path(path), Path(path).suffix.lower()
    size = file.stat().st_size
    if size == 0:
        raise DataError(path, "is empty: remove it, or leave it out of the sources")
    if suffix in _PACKED:
        raise DataError(path, f"is compressed ({suffix}): unpack it first")
    if suffix == ".json":
        raise DataError(path, "is .json: write one object a line and name it .jsonl")
    kind = _kind(path)
    source = Source(path, file_hash(file), size)
    if kind == "parquet":
        return source, [Part(path, kind, i, i + 1, n) for i, n in enumerate(_row_groups(path))]
    between = b"\n" if kind == "jsonl" else (separator or "").encode()
    ends = list(_boundaries(file, between, size)) if between else [size]
    starts = [0, *ends[:-1]]
    parts = [Part(path, kind, a, b, b - a) for a, b in zip(starts, ends, strict=True)]
    longest = max(part.size for part in parts)  # with a document that is nearly as long
    if kind == "text" and longest > _LONGEST_DOCUMENT:
        raise DataError(
            path,
            f"has a document of about {longest} bytes, more than {_LONGEST_DOCUMENT}: say what "
            "stands between its documents (--separator; to train --data.separator)",
        )
    return source, parts


def _boundaries(file: Path, between: bytes, size: int) -> Iterator[int]:
    """Where parts end: behind the first separator at or after each `SHARD_BYTES`."""
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
        start = 0
        while size - start > SHARD_BYTES:
            at = view.find(between, start + SHARD_BYTES)
            if at < 0 or at + len(between) >= size:
                break
            start = at + len(between)
            yield start
    yield size


def _row_groups(path: str) -> list[int]:
    try:
        with open_parquet(path) as file:
            meta = file.metadata
            return [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
    except OSError as error:
        raise DataError(path, f"cannot be read: {error}") from error
    except ValueError as error:  # pyarrow.ArrowInvalid
        raise DataError(path, f"is no parquet file: {error}") from error


def open_parquet(path: str) -> Any:
    """A `pyarrow.parquet.ParquetFile`."""
    try:
        import pyarrow.parquet  # only those who have such files need it
    except ModuleNotFoundError as error:
        raise DataError(path, "needs pyarrow: pip install 'diy-lm[train]'") from error
    return pyarrow.parquet.ParquetFile(path)
