"""The documents of one part of a source, each with the place that error messages name."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from diy_core.data.chat_shapes import without_nulls
from diy_core.data.contents import Contents
from diy_core.data.counts import Counts
from diy_core.data.files import DataError
from diy_core.data.json_values import NUL, Refused, Values, texts_in
from diy_core.data.records import (
    Chat,
    Completion,
    Document,
    columns_to_read,
    read_record,
)
from diy_core.data.sources import Part, builtin_documents
from diy_core.data.tables import Tables
from diy_core.system.limits import how_to_raise, limit
from diy_core.system.utf8 import NotUTF8, decode

_KINDS: dict[type, str] = {str: "text", Chat: "chat", Completion: "completion"}
_MARK = "\ufeff"  # where a file begins it says UTF-8 and is not text


def advice_on_line(text: str) -> str | None:
    """What a line that is not one JSON object looks like, and what to do; None: like nothing known.

    Args:
        text: the line, or what it begins with.
    """
    text = text.strip()
    if text.startswith("["):
        return "it looks like a list. jq -c '.[]' makes lines of it"
    if text == "{":
        return "it looks like an object over several lines. jq -c . makes lines of such"
    if text.startswith("<"):
        return "it looks like a page in place of the file. Download it again"
    if "\r" in text:
        return "its lines end in CR alone. tr '\\r' '\\n' makes lines of them"
    if text.startswith("{") and text.endswith("},"):
        return "commas stand between the lines. sed 's/,$//' takes them off"
    if text.startswith("{") and re.search(r"}\s*{", text):
        return "it looks like several objects in a line. jq -c . puts each on its own"
    return None


def _is_longer(text: str, most: int) -> bool:
    """Whether it has more bytes than that."""
    return 4 * len(text) > most and len(text.encode("utf-8", "surrogatepass")) > most


class Documents:
    """Reads the documents of parts.

    Args:
        separator: what stands between the documents of a text file. Line breaks around it go, and
            so do documents of nothing else.
        field: the column of JSON lines and parquet rows that is learnt (`read_record`).
        template_names: that the chat templates read.

    Attributes:
        counts: of all that was read.
        contents: that parts are read from.
    """

    def __init__(
        self, separator: str | None, field: str | None, template_names: Collection[str] = ()
    ) -> None:
        self.counts = Counts()
        self._separator, self._field = separator, field
        self._template_names = template_names
        self.contents, self._tables, self._values = Contents(), Tables(), Values()

    def read(self, part: Part) -> Iterator[tuple[str, Document]]:
        """The documents of a part in order, as (place, document); white space alone is left out.

        Raises:
            DataError: invalid UTF-8 or JSON, or a row that `read_record` refuses; it names the
                place.
        """
        for where, document in self._records(part):
            if isinstance(document, str) and not document.strip():
                self.counts.empty += 1
            else:
                self.counts.documents[_KINDS[type(document)]] += 1
                yield where, document

    def _records(self, part: Part) -> Iterator[tuple[str, Document]]:
        if part.kind == "builtin":
            for i, text in enumerate(builtin_documents()):
                yield f"{part.path}, topic {i + 1}", text
        elif part.kind == "parquet":
            yield from self._rows(part)
        elif part.kind in ("jsonl", "record"):
            yield from self._lines(part)
        else:
            yield from self._texts(part)

    def _texts(self, part: Part) -> Iterator[tuple[str, Document]]:
        between = self._separator.encode() if self._separator else None
        content = self._content(part)
        at = part.start
        for piece in content.split(between) if between else [content]:
            text = self._decode(piece, part.path, at)
            if between:
                text = text.strip("\r\n")
            if text.strip() or not between:
                yield f"{part.path}, byte {at}", text
            at += len(piece) + len(between or b"")

    def _lines(self, part: Part) -> Iterator[tuple[str, Document]]:
        at = part.start
        content = self._content(part)
        lines = content.split(b"\n") if part.kind == "jsonl" else [content]
        for number, line in enumerate(lines, part.line):
            where = f"{part.path}, line {number}" if part.kind == "jsonl" else part.path
            text = self._decode(line, where, at)
            if text.strip():
                try:
                    row = self._values.read(text)
                except Refused as error:
                    raise DataError(where, str(error)) from error
                except (ValueError, RecursionError) as error:  # also numbers of 5,000 digits
                    why = advice_on_line(text) or "each line of a .jsonl file is one object"
                    raise DataError(where, f"is not JSON ({error}): {why}") from error
                yield where, self._document(row, where, may_hold_nul=NUL in text)
            at += len(line) + 1

    def _content(self, part: Part) -> bytes:
        return self.contents.read(part.path, part.start, part.stop, part.sha256)

    def _rows(self, part: Part) -> Iterator[tuple[str, Document]]:
        file = self._tables.open(part.path, part.identity)
        names = file.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(part.path, f"has two columns {twice!r}: keep one of them")
        if not names:
            raise DataError(part.path, "has no columns: write it again, or leave it out")
        columns = columns_to_read(names, self._field, self._template_names)
        if not columns:
            raise DataError(
                part.path,
                f"has no column {self._field or 'text'!r} and no column 'messages', only "
                f"{', '.join(names)}: name the column to learn, such as field={names[0]!r}",
            )
        others = [name for name in names if name not in columns]
        self.counts.pass_over_columns(others, file.groups[part.start][0])
        most = limit("document_bytes")
        rows = self._tables.rows(part.path, part.start, columns, part.line)
        for number, row in enumerate(rows, part.line):
            where = f"{part.path}, row {number}"
            held = {name: without_nulls(value) for name, value in row.items()}
            if any(_is_longer(text, most) for text in texts_in(held)):
                raise DataError(
                    where,
                    f"has a text of more than {most} bytes: write it as several, or, "
                    + how_to_raise("document_bytes"),
                )
            yield where, self._document(held, where)
        self._tables.require(part.path, part.identity)

    def _document(self, row: Any, where: str, *, may_hold_nul: bool = True) -> Document:
        if not isinstance(row, dict):
            advice = advice_on_line("[") if isinstance(row, list) else None
            kind = f"is not an object but {type(row).__name__}: "
            raise DataError(where, kind + (advice or str(row)[:80]))
        # A raw one was refused with its byte.
        if may_hold_nul and any("\0" in text for text in texts_in(row)):
            raise DataError(
                where,
                "holds a NUL (\\u0000 in JSON), which no text holds: remove it, or the record",
            )
        try:
            document, others = read_record(row, self._field, self._template_names)
            self.counts.records += 1
            self.counts.with_field += row.get(self._field) is not None
        except ValueError as error:
            raise DataError(where, str(error)) from error
        self.counts.pass_over_columns(others)
        return document

    def _decode(self, content: bytes, where: str, offset: int) -> str:
        """Text without byte order marks where it begins, or one of its lines does."""
        try:
            text = decode(content, offset)
        except NotUTF8 as error:
            raise DataError(where, str(error)) from error
        if _MARK not in text:
            return text
        self.counts.marks += (offset > 0 and text.startswith(_MARK)) + text.count(f"\n{_MARK}")
        return text.removeprefix(_MARK).replace(f"\n{_MARK}", "\n")
