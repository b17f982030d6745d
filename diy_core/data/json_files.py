"""Files that hold JSON: records, a list of them, or something about them."""

from __future__ import annotations

import json

from diy_core.data.contents import Ahead
from diy_core.data.records import columns_to_read

NO_LINES = "one JSON value, and not an object a line"  # why a file is not read
_LONGEST = 64 << 20  # of a first line, which shows whether there are several, and of one record
_MARK = b"\xef\xbb\xbf"  # in front of UTF-8


def form_of_json(stream: Ahead, field: str | None) -> str | None:
    """`jsonl` for an object a line, as in the files of C4; `record` for one, over several lines.

    One alone must be a record: many that hold one object are about data, such as the
    dataset_info.json of a hub.

    Returns:
        None: it is neither.
    """
    first, _, more = _first_line(stream).removeprefix(_MARK).strip().partition(b"\n")
    try:
        value = json.loads(first)
    except UnicodeDecodeError:  # whoever reads the lines says where, and in which encoding
        return "jsonl" if first.startswith(b"{") else None
    except (ValueError, RecursionError):
        return "record" if first.startswith(b"{") and _is_record(stream, field) else None
    is_jsonl = isinstance(value, dict) and (more or columns_to_read(value, field))
    return "jsonl" if is_jsonl else None


def _first_line(stream: Ahead) -> bytes:
    """A stream up to where something follows its first line."""
    taken: list[bytes] = []
    size, begun, ended = 0, False, False
    for block in stream.look():
        taken.append(block)
        size += len(block)
        rest = block if begun else block.lstrip()
        begun = begun or bool(rest)
        if begun and not ended:
            _, line_break, rest = rest.partition(b"\n")
            ended = bool(line_break)
        if (ended and rest.strip()) or size > _LONGEST:
            break
    return b"".join(taken)


def holds_lines(stream: Ahead, field: str | None) -> bool:
    """Whether a file of any name begins with a record in a line, such as a .txt of JSON lines."""
    head = next(stream.look(), b"").removeprefix(_MARK).lstrip()
    first, end, _ = head.partition(b"\n")
    try:
        value = json.loads(first) if end and first.startswith(b"{") else None
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(columns_to_read(value, field))


def _is_record(stream: Ahead, field: str | None) -> bool:
    taken, size = [], 0
    for block in stream.look():
        taken.append(block)
        size += len(block)
        if size > _LONGEST:
            return False
    try:
        value = json.loads(b"".join(taken).removeprefix(_MARK))
    except UnicodeDecodeError:  # as above
        return True
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(columns_to_read(value, field))
