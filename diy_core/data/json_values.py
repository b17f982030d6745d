"""The value of a record in JSON, of a size and depth that whoever looks at it next can bear."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from diy_core.errors import CheckpointError
from diy_core.system.limits import how_to_raise, limit
from diy_core.system.parsing import parse_json, require_shallow

NUL = "\\u0000"  # as JSON writes it, and in no other way
# A text in JSON, with what stands behind a backslash; it never goes back, however long it is.
_TEXT = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)


class Refused(ValueError):
    """JSON that is not read, whatever else a record holds; the message says why."""


class Values:
    """Reads values; the limits are those of the time when it is made."""

    def __init__(self) -> None:
        self._items, self._depth = limit("record_items"), limit("json_depth")
        # Made once: to make one takes as long as to read a short line.
        self._decode = json.JSONDecoder(object_pairs_hook=_each_name_once).decode

    def read(self, text: str) -> Any:
        """The value of a text.

        Raises:
            Refused: a name stands twice in one object, or there are too many items, or too deep.
            ValueError: it is not JSON.
            RecursionError: it is nested too deeply to be read at all.
        """
        opened = text.count("{") + text.count("[")
        if opened + text.count(",") > self._items:
            self._require_few(text)
        if text.startswith("\ufeff"):
            return json.loads(text)  # raises, and says what that is
        value = self._decode(text)
        if opened > self._depth:
            try:
                require_shallow(value, "")
            except CheckpointError as error:
                raise Refused(error.faults[0]) from error
        return value

    def _require_few(self, text: str) -> None:
        """Count again without the texts, which are of no size that matters here."""
        bare = _TEXT.sub("", text)
        if sum(map(bare.count, ",[{")) > self._items:
            how = how_to_raise("record_items")
            raise Refused(f"has more than {self._items} items: {how}")


def parse(text: str) -> Any:
    """The value of a text that is itself a value in a record, such as tools.

    Raises:
        ValueError: `is not JSON`, is too large or too deep, or holds a NUL; so the message begins.
    """
    try:
        value = parse_json(text, "", said="is not JSON", halves=True)
    except CheckpointError as error:
        raise ValueError(error.faults[0]) from error
    if NUL in text and any("\0" in part for part in texts_in(value)):
        raise ValueError(f"holds a NUL ({NUL} in JSON), which no text holds: remove it")
    return value


def texts_in(value: Any) -> Iterator[str]:
    """All texts of a value, and the names in it."""
    pending: list[Any] = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list):
            pending += value


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, of which Python would keep the last of two values under one name."""
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise Refused(f"has the name {name!r} twice in one object: keep one of them")
            seen.add(name)
    return values
