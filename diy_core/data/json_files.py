"""Files that hold JSON: records, a list of them, or something about them."""

from __future__ import annotations

from diy_core.data.contents import Ahead
from diy_core.data.json_values import Refused, Values
from diy_core.data.records import columns_to_read
from diy_core.system.limits import how_to_raise, limit

NO_LINES = "one JSON value, and not an object a line"  # why a file is not read
_MARK = b"\xef\xbb\xbf"  # in front of UTF-8


def form_of_json(stream: Ahead, field: str | None) -> str | None:
    """`jsonl` for an object a line, as in the files of C4; `record` for one, over several lines.

    One alone must be a record: many that hold one object are about data, such as the
    dataset_info.json of a hub.

    Returns:
        None: it is neither.

    Raises:
        Refused: its first line is too long, or holds too much.
    """
    first, _, more = _first_line(stream).removeprefix(_MARK).strip().partition(b"\n")
    if not first.startswith(b"{"):
        return None
    if not more and len(first) > limit("record_bytes"):
        raise Refused(f"has a line of more than {limit('record_bytes')} bytes: {_how()}")
    try:
        value = Values().read(first.decode())
    except Refused:
        raise
    except UnicodeDecodeError:  # whoever reads the lines says where, and in which encoding
        return "jsonl"
    except (ValueError, RecursionError):
        return "record" if _is_record(stream, field) else None
    return "jsonl" if isinstance(value, dict) and (more or columns_to_read(value, field)) else None


def _how() -> str:
    return how_to_raise("record_bytes")


def _first_line(stream: Ahead) -> bytes:
    """A stream up to where something follows its first line."""
    taken: list[bytes] = []
    size, begun, ended, longest = 0, False, False, limit("record_bytes")
    for block in stream.look():
        taken.append(block)
        size += len(block)
        rest = block if begun else block.lstrip()
        begun = begun or bool(rest)
        if begun and not ended:
            _, line_break, rest = rest.partition(b"\n")
            ended = bool(line_break)
        if (ended and rest.strip()) or size > longest:
            break
    return b"".join(taken)


def holds_lines(stream: Ahead, field: str | None) -> bool:
    """Whether a file of any name begins with a record in a line, such as a .txt of JSON lines."""
    head = next(stream.look(), b"").removeprefix(_MARK).lstrip()
    first, end, _ = head.partition(b"\n")
    try:
        value = Values().read(first.decode()) if end and first.startswith(b"{") else None
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(columns_to_read(value, field))


def _is_record(stream: Ahead, field: str | None) -> bool:
    taken, size = [], 0
    for block in stream.look():
        taken.append(block)
        size += len(block)
        if size > limit("record_bytes"):
            return False
    try:
        value = Values().read(b"".join(taken).removeprefix(_MARK).decode())
    except Refused:
        raise
    except UnicodeDecodeError:  # as above
        return True
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(columns_to_read(value, field))
