"""The documents of one part of a source, each with the place that error messages name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diy_core.data.files import DataError
from diy_core.data.records import Document, columns_to_read, read_record, without_nulls
from diy_core.data.sources import Part, builtin_documents, open_parquet

_BYTE_ORDER_MARK = "\ufeff"  # at the start of a file it says UTF-8 and is no text


def documents(
    part: Part, separator: str | None, field: str | None, passed_over: Counter[str] | None = None
) -> Iterator[tuple[str, Document]]:
    """The documents of a part in order, as (place, document); texts of white space are left out.

    Args:
        part: a stretch of a source.
        separator: what stands between the documents of a text file. Line breaks around it go, and
            so do documents of nothing else.
        field: the column of JSON lines and parquet rows that is learnt (`read_record`).
        passed_over: is told how often each other column held something.

    Raises:
        DataError: invalid UTF-8 or JSON, or a row that `read_record` refuses; it names the place.
    """
    passed: Counter[str] = Counter() if passed_over is None else passed_over
    if part.kind == "builtin":
        for i, text in enumerate(builtin_documents()):
            yield f"{part.path}, topic {i + 1}", text
    elif part.kind == "parquet":
        yield from _rows(part, field, passed)
    elif part.kind == "jsonl":
        yield from _lines(part, field, passed)
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


def _lines(part: Part, field: str | None, passed: Counter[str]) -> Iterator[tuple[str, Document]]:
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
            if document := _document(row, field, where, passed):
                yield where, document
        number, at = number + 1, at + len(line) + 1


def _rows(part: Part, field: str | None, passed: Counter[str]) -> Iterator[tuple[str, Document]]:
    with open_parquet(part.path) as file:
        names = file.schema_arrow.names
        columns = columns_to_read(names, field)
        if not columns:
            raise DataError(
                part.path,
                f"has no column {field or 'text'!r} and no column 'messages', only "
                f"{', '.join(names)}: name the text's column (--field)",
            )
        number = sum(file.metadata.row_group(i).num_rows for i in range(part.start))
        others = {name: 1 for name in names if name not in columns}
        batches = file.iter_batches(batch_size=256, row_groups=[part.start], columns=columns)
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                where = f"{part.path}, row {number}"
                passed.update(others)
                if document := _document(without_nulls(row), field, where, passed):
                    yield where, document


def _document(row: Any, field: str | None, where: str, passed_over: Counter[str]) -> Document:
    if not isinstance(row, dict):
        raise DataError(where, f"is no object but {type(row).__name__}: {str(row)[:80]}")
    try:
        document, others = read_record(row, field)
    except ValueError as error:
        raise DataError(where, str(error)) from error
    passed_over.update(others)
    return "" if isinstance(document, str) and not document.strip() else document


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
