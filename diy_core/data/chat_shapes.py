"""The turns of a chat in the shapes that tables hold them in, and shapes that are refused by name.

[{"role": ..., "content": ...}, ...]          a list of objects
'[{"role": ..., "content": ...}, ...]'        the same as JSON in a text
{"role": [...], "content": [...]}             a list of all roles and one of all contents, also
                                              as JSON in a text
"""

from __future__ import annotations

import re
from typing import Any

from diy_core.data.json_values import parse

_SPEAKER = {"role", "from"}  # a key that every turn has
# As Python's str() writes a list of objects, or one of them.
_REPR = re.compile(r"\s*\[?\s*\{\s*'(?:role|content|from|value)'\s*:")
_OBJECT = re.compile(r"""\s*\{\s*["'](?:role|content|from|value)["']\s*:""")


def turns_in(value: Any) -> Any:
    """The list of turns in a value; any other value as it is.

    Args:
        value: of a column for chats.
    """
    found = _parsed(value) if isinstance(value, str) else value
    if isinstance(found, dict):
        found = _of_columns(found)
    return found if are_turns(found) or not isinstance(value, str) else value


def pair_of_turns(prompt: Any, completion: Any) -> tuple[Any, Any]:
    """A prompt and its completion, both as lists of turns where both hold some.

    One alone may be a text about JSON.
    """
    both = turns_in(prompt), turns_in(completion)
    return both if all(map(are_turns, both)) else (prompt, completion)


def are_turns(value: Any) -> bool:
    """Whether a value is a list of objects, at least one."""
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def refuse_other_shapes(name: str, value: Any) -> None:
    """Raise for what was meant to be a chat, and would be read as something else.

    Args:
        name: of the column.
        value: as `turns_in` returned it.

    Raises:
        ValueError: turns as Python's str() writes them, as texts in a list, as JSON twice, or in an
            object around them.
    """
    if (what := _other_shape(value)) is not None:
        raise ValueError(
            f"holds {name} as {what}: write it as a list of objects with role and content, or that "
            "list as JSON in a text (json.dumps)"
        )


def is_python(text: str) -> bool:
    """Whether a text is a list of turns as Python's str() writes it."""
    return _REPR.match(text) is not None


def without_nulls(value: Any) -> Any:
    """Nested data without keys that have no value: parquet gives every object every key."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _other_shape(value: Any) -> str | None:
    if isinstance(value, str):
        if is_python(value):
            return "a text that Python's str() wrote, which is not JSON"
        inside = _parsed(value)
        if isinstance(inside, str) and are_turns(turns_in(inside)):
            return "JSON within JSON"
        if inside is None:
            return "objects in a text that is not a JSON list" if _OBJECT.match(value) else None
        return _other_shape(inside) if isinstance(inside, (list, dict)) else None
    if isinstance(value, list):
        texts = [item for item in value if isinstance(item, str) and _OBJECT.match(item)]
        return "a list of texts, one for each turn" if texts else None
    if isinstance(value, dict) and any(are_turns(turns_in(item)) for item in value.values()):
        return "an object with the turns inside"
    if isinstance(value, dict) and any(isinstance(value.get(key), str) for key in _SPEAKER):
        return "an object, a single turn"
    return None


def _of_columns(value: dict[str, Any]) -> Any:
    there = without_nulls(value)
    lengths = {len(one) if isinstance(one, list) else None for one in there.values()}
    if len(lengths) != 1 or None in lengths or not _SPEAKER & set(there):
        return value
    return [dict(zip(there, turn, strict=True)) for turn in zip(*there.values(), strict=True)]


def _parsed(text: str) -> Any:
    """The value of a text that may be JSON; None: it only begins like it."""
    if not text.lstrip().startswith(("[", "{", '"')):
        return None
    try:
        return parse(text)
    except ValueError:
        return None
