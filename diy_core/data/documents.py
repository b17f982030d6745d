"""The documents of one part of a source, each with the place that error messages name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diy_core.data.files import DataError
from diy_core.data.sources import Part, builtin_documents, open_parquet

# A text, or a chat: `[{"role": "user", "content": "..."}, ...]`.
Document = str | list[dict[str, Any]]
_BYTE_ORDER_MARK = "\ufeff"  # at the start of a file it says UTF-8 and is no text


def documents(part: Part, separator: str | None, field: str) -> Iterator[tuple[str, Document]]:
    """The documents of a part in order, as (place, document); texts of white space are left out.

    Args:
        part: a stretch of a source.
        separator: what stands between the documents of a text file. Line breaks around it go, and
            so do documents of nothing else.
        field: where JSON lines and parquet rows hold the text; a row without it may be a chat
            with `messages`.

    Raises:
        DataError: invalid UTF-8 or JSON, or a row without text and messages; it names the place.
    """
    if part.kind == "builtin":
        for i, text in enumerate(builtin_documents()):
            yield f"{part.path}, topic {i + 1}", text
    elif part.kind == "parquet":
        yield from _rows(part, field)
    elif part.kind == "jsonl":
        yield from _lines(part, field)
    else:
        yield from _texts(part, separator)


def _texts(part: Part, separator: str | None) -> Iterator[tuple[str, Document]]:
    between = separator.encode() if separator else None
    content = _read(part)
    at = part.start
    for piece in content.split(between) if between else [content]:
        text = _decode(piece, part.path, at)
        if between:
            text = text.strip("\r\n")
        if text.strip():
            yield f"{part.path}, byte {at}", text
        at += len(piece) + len(between or b"")


def _lines(part: Part, field: str) -> Iterator[tuple[str, Document]]:
    number, at = _line_number(part), part.start
    for line in _read(part).split(b"\n"):
        where = f"{part.path}, line {number}"
        text = _decode(line, where, at)
        if text.strip():
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:  # also numbers of 5,000 digits
                raise DataError(
                    where, f"is no JSON ({error}): each line of a .jsonl file is one object"
                ) from error
            if document := _document(row, field, where):
                yield where, document
        number, at = number + 1, at + len(line) + 1


def _rows(part: Part, field: str) -> Iterator[tuple[str, Document]]:
    with open_parquet(part.path) as file:
        columns = [name for name in (field, "messages") if name in file.schema_arrow.names]
        if not columns:
            raise DataError(
                part.path,
                f"has no column {field!r} and no column 'messages', only "
                f"{', '.join(file.schema_arrow.names)}: name the text's column (--field)",
            )
        number = sum(file.metadata.row_group(i).num_rows for i in range(part.start))
        batches = file.iter_batches(batch_size=256, row_groups=[part.start], columns=columns)
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                where = f"{part.path}, row {number}"
                if document := _document(row, field, where):
                    yield where, document


def _document(row: Any, field: str, where: str) -> Document:
    if not isinstance(row, dict):
        raise DataError(where, f"is no object but {type(row).__name__}: {str(row)[:80]}")
    if isinstance(row.get(field), str):
        return row[field] if row[field].strip() else ""
    if isinstance(row.get("messages"), list) and row["messages"]:
        # Parquet gives every message every key; those without a value were not there.
        return [
            {k: v for k, v in message.items() if v is not None}
            if isinstance(message, dict)
            else message
            for message in row["messages"]
        ]
    held = ", ".join(f"{key} ({type(value).__name__})" for key, value in row.items()) or "nothing"
    raise DataError(
        where,
        f"has no text in {field!r} and no list in 'messages', but {held}: name the text's field "
        "(--field)",
    )


def _read(part: Part) -> bytes:
    with Path(part.path).open("rb") as file:
        file.seek(part.start)
        return file.read(part.stop - part.start)


def _line_number(part: Part) -> int:
    """The number of the first line of a part, counted from 1."""
    number = 1
    with Path(part.path).open("rb") as file:
        left = part.start
        while left and (block := file.read(min(left, 1 << 20))):
            number += block.count(b"\n")
            left -= len(block)
    return number


def _decode(content: bytes, where: str, offset: int) -> str:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            where,
            f"byte {offset + error.start} (0x{content[error.start]:02x}) is not UTF-8: convert the "
            "file first, for example with iconv -f LATIN1 -t UTF-8",
        ) from error
    return text if offset else text.removeprefix(_BYTE_ORDER_MARK)
