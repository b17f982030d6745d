"""How files are cut into shards of work.

The cut depends on the bytes of the sources alone. So the shards, and with them every byte that is
written, are the same for any number of workers.
"""

from __future__ import annotations

import hashlib
import json
import pydoc_data.topics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diy_core.data.contents import Ahead, blocks
from diy_core.data.cutting import TooLong, cut
from diy_core.data.files import DataError, data_errors
from diy_core.data.finding import BUILTIN, SOURCES, survey
from diy_core.data.forms import form_of
from diy_core.data.found import ARCHIVE, EMPTY, OTHER_KIND, Found, folded
from diy_core.data.json_files import NO_LINES, form_of_json, holds_lines
from diy_core.data.json_values import Refused
from diy_core.data.tables import Tables
from diy_core.system.limits import how_to_raise, limit
from diy_core.system.outside import open_regular
from diy_core.system.sources import Identity
from diy_core.system.utf8 import recognise

SHARD_BYTES = 4 << 20  # seconds of work: what a killed run loses, and what Ctrl-C waits for


@dataclass(frozen=True)
class Part:
    """A stretch of one source: bytes `start` to `stop`, or the row group `start` of a parquet.

    Bytes are counted in the unpacked file.

    Attributes:
        line: the number of the first line or row, from 1.
        sha256: of the bytes; of a parquet, empty.
        identity: of a parquet, what the file was when it was hashed.
    """

    path: str
    kind: str
    start: int
    stop: int
    size: int  # bytes
    line: int = 1
    sha256: str = ""
    identity: Identity | None = None

    def __str__(self) -> str:
        """What it is of which source, the same for the same content wherever that lies."""
        return json.dumps([value for name, value in vars(self).items() if name != "identity"])


@dataclass(frozen=True)
class Source:
    """One file: its name as it was given, its sha256 and its size in bytes."""

    path: str
    sha256: str
    bytes: int


@dataclass
class Plan:
    """What is read, and the work that it makes.

    Attributes:
        sources: the files.
        shards: of about `SHARD_BYTES`.
        texts: the text files.
        unseparated: those of them in which the separator is nowhere.
        json_texts: those of them that hold JSON lines, and are read as texts.
    """

    sources: list[Source] = field(default_factory=list)
    shards: list[list[Part]] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    unseparated: list[str] = field(default_factory=list)
    json_texts: list[str] = field(default_factory=list)


class _NothingHere(Exception):
    """A file without records: passed over below a directory, and an error where it was named.

    Args:
        why: the reason for passing it over.
        fault: what is wrong with it, and what to do.
    """

    def __init__(self, why: str, fault: str) -> None:
        super().__init__(fault)
        self.why = why


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
    """The files that `survey` finds.

    Raises:
        DataError: of `survey`.
    """
    return survey(sources).paths


def plan(found: Found, separator: str | None, field: str | None = None) -> Plan:
    """Hash the files and cut them into shards of about `SHARD_BYTES`.

    Args:
        found: from `survey`; files of a directory that hold no records are passed over there.
        separator: what stands between the documents of a text file; None: each is one document.
        field: the column of records that is learnt, as `read_record` takes it.

    Raises:
        DataError: files that were named and are empty, or cannot be read; all of them.
    """
    made, faults, tables = Plan(), [], Tables()
    nothing: list[tuple[str, _NothingHere]] = []
    parts: list[Part] = []
    for path in found.paths:
        try:
            parts += _cut(path, separator, field, made, tables)
        except _NothingHere as error:
            nothing.append((path, error))
        except DataError as error:
            faults += [f"{path}: {fault}" for fault in error.faults]
    for path, missing in nothing:
        if path in found.named or not made.sources:
            faults.append(f"{path}: {missing}")
        else:
            found.pass_over(path, missing.why)
    if nothing and not made.sources:  # what was meant may be what is not read
        faults += [
            f"{folded(found.passed_over[why])}: {why}"
            for why in (ARCHIVE, OTHER_KIND)
            if why in found.passed_over
        ]
    if faults:
        raise DataError(SOURCES, faults)
    made.shards = list(_shards(parts))
    return made


def unused(made: Plan, separator: str) -> str | None:
    """What there is to say of a separator that separates nothing; None: each text file has it."""
    texts, without = made.texts, made.unseparated
    if not texts:
        return f"separator {separator!r} is not used: no source is a text file"
    if not without:
        return None
    if len(texts) == 1:
        return f"separator {separator!r} does not occur in {texts[0]}, which is one document"
    if len(without) == len(texts):
        return (
            f"separator {separator!r} occurs in none of the {len(texts)} text files: each is one "
            "document"
        )
    listed = ", ".join(without[:2]) + (f" and {len(without) - 2} more" if without[2:] else "")
    return (
        f"separator {separator!r} does not occur in {len(without)} of the {len(texts)} text files, "
        f"each of which is one document: {listed}"
    )


def _shards(parts: Sequence[Part]) -> Iterator[list[Part]]:
    shard: list[Part] = []
    size = 0
    for part in parts:
        shard.append(part)
        size += part.size
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _cut(
    path: str, separator: str | None, field: str | None, made: Plan, tables: Tables
) -> list[Part]:
    if path == BUILTIN:
        content = json.dumps(builtin_documents()).encode()
        made.sources.append(Source(path, hashlib.sha256(content).hexdigest(), len(content)))
        return [Part(path, "builtin", 0, 0, len(content))]
    form = form_of(path)
    if form.kind == "archive":
        raise DataError(path, f"is an archive ({form.ending}): unpack it first")
    if form.kind == "parquet" and form.packing:
        raise DataError(path, f"is a packed parquet file ({form.ending}): unpack it first")
    if _size(path) == 0:
        raise _NothingHere(EMPTY, "is empty: remove it, or leave it out of the sources")
    if form.kind == "parquet":
        return _row_groups(path, made, tables)
    digest = hashlib.sha256()
    stream = Ahead(blocks(path, digest))
    _require_text(path, next(stream.look(), None))
    kind = form.kind or "text"
    if kind == "json":
        try:
            found = form_of_json(stream, field)
        except Refused as error:
            raise DataError(path, str(error)) from error
        if found is None:
            raise _NothingHere(
                NO_LINES,
                f"is {NO_LINES}: write one object a line and name it .jsonl, as jq -c '.[]' makes "
                "them of a list",
            )
        kind = found
    elif kind == "text" and holds_lines(stream, field):
        made.json_texts.append(path)
    parts = _stretches(path, kind, separator, made, stream)
    made.sources.append(Source(path, digest.hexdigest(), _size(path)))
    return parts


def _size(path: str) -> int:
    with data_errors(), open_regular(path) as file:
        return Identity.of(file).size


def _require_text(path: str, head: bytes | None) -> None:
    if head is None:
        raise _NothingHere(EMPTY, "is empty when it is unpacked: leave it out of the sources")
    if seen := recognise(head):
        raise DataError(path, f"looks like {seen}")


def _stretches(
    path: str, kind: str, separator: str | None, made: Plan, stream: Iterable[bytes]
) -> list[Part]:
    between = {"jsonl": b"\n", "record": b""}.get(kind, (separator or "").encode())
    name = "document_bytes" if kind == "text" else "record_bytes"
    most = limit(name)
    what, advice = ("line" if kind == "jsonl" else "record"), "write it as several"
    if kind == "text":
        what = "document"
        advice = "say what stands between its documents (separator=TEXT)"
    unpacked = ", unpacked" if form_of(path).packing else ""
    # It is not read to its end: a packed file may be a thousand times as large as it looks.
    try:
        found = cut(stream, between, SHARD_BYTES, most)
    except TooLong as error:
        place = f" (line {error.line})" if kind == "jsonl" else ""
        fault = f"has a {what} of more than {most} bytes{unpacked}{place}: {advice}, or, "
        raise DataError(path, fault + how_to_raise(name)) from None
    starts = [0, *found.ends[:-1]]
    if kind == "text":
        made.texts.append(path)
        made.unseparated += [] if found.separated else [path]
    each = zip(starts, found.ends, found.lines, found.sums, strict=True)
    return [Part(path, kind, a, b, b - a, 1 + lines, sha256) for a, b, lines, sha256 in each]


def _row_groups(path: str, made: Plan, tables: Tables) -> list[Part]:
    parts, row = [], 1
    groups, identity = tables.open(path).groups, tables.identity()
    for i, (rows, size) in enumerate(groups):
        parts.append(Part(path, "parquet", i, i + 1, size, row, identity=identity))
        row += rows
    sha256 = hashlib.file_digest(tables.content(), "sha256").hexdigest()
    tables.require(path, identity)
    made.sources.append(Source(path, sha256, identity.size))
    return parts
