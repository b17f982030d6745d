"""What became of the records of sources, counted while they are read."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

_MOST_COLUMNS = 1000  # names: records that hold thousands of different ones are no table
_LONGEST_NAME = 100  # characters: what is longer was not made to be read


@dataclasses.dataclass
class Counts:
    """Records by what became of them.

    Attributes:
        documents: that were read, by kind: `text`, `chat` and `completion`.
        empty: records and files of nothing but white space, which are left out.
        without_tokens: documents of which the tokenizer makes no token, which are left out.
        marks: byte order marks within a file, as where files were joined; they are left out.
        columns: that were passed over, each with the number of records that hold something there.
        records: that were read, of JSON lines and parquet.
        with_field: those of them that hold something in the column that was asked for.
    """

    documents: Counter[str] = dataclasses.field(default_factory=Counter)
    empty: int = 0
    without_tokens: int = 0
    marks: int = 0
    columns: Counter[str] = dataclasses.field(default_factory=Counter)
    records: int = 0
    with_field: int = 0

    def pass_over_columns(self, names: Iterable[str], records: int = 1) -> None:
        """Count what so many records hold beside the document."""
        for name in names:
            if len(name) > _LONGEST_NAME:
                name = f"{name[:_LONGEST_NAME]} ..."
            if name in self.columns or len(self.columns) < _MOST_COLUMNS:
                self.columns[name] += records

    def add(self, other: Counts) -> None:
        """Add what was counted elsewhere."""
        self.documents += other.documents
        self.empty += other.empty
        self.without_tokens += other.without_tokens
        self.marks += other.marks
        self.columns += other.columns
        self.records += other.records
        self.with_field += other.with_field

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> Counts:
        """What `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        for name in ("documents", "columns"):
            values[name] = Counter(values[name])
        return cls(**values)
