"""Files named .json, which may hold records, a list of them, or something about them."""

from __future__ import annotations

import json

from diy_core.data.contents import blocks
from diy_core.data.records import columns_to_read

NO_LINES = "one JSON value, and not an object a line"  # why a file is not read
_LONGEST_LINE = 64 << 20  # the first of a file, which shows whether it holds lines


def holds_lines(path: str, field: str | None) -> bool:
    """Whether a .json file holds an object a line, as those of C4 do; one alone must be a record.

    Many that hold one object are about data, such as the dataset_info.json of a hub.
    """
    head = b""
    for block in blocks(path):
        head += block
        if b"\n" in head.strip() or len(head) > _LONGEST_LINE:
            break
    first, _, more = head.removeprefix(b"\xef\xbb\xbf").strip().partition(b"\n")
    try:
        value = json.loads(first)
    except UnicodeDecodeError:  # whoever reads the lines says where, and in which encoding
        return first.startswith(b"{")
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(more or columns_to_read(value, field))
