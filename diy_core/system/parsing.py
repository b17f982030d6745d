"""JSON and YAML from outside as values: neither deeper nor larger than a program expects.

    values = parse_json(content, file)
    values = parse_yaml(text, file)

Half a kilobyte of YAML whose aliases name each other unfolds to more than any memory; text nested a
thousand times ends whoever looks at it next, at a depth that depends on who calls.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diy_core.errors import CheckpointError, shorten
from diy_core.system.limits import how_to_raise, limit
from diy_core.system.translated import translated, words_of
from diy_core.system.utf8 import recognise

_LONG_NUMBER = re.compile(r"\d[\d_]{4299,}")  # more than Python makes a number of
_OF_A_NAME = 5  # items: of what one takes, a name in an object and its place take as much
_Pairs = Callable[[list[tuple[str, Any]]], Any]


def parse_json(
    content: bytes | str,
    where: object,
    *,
    pairs: _Pairs | None = None,
    halves: bool = False,
    said: str = "is not valid JSON",
) -> Any:
    """The value of a text in JSON.

    Args:
        content: in UTF-8, where it is bytes.
        where: what errors name, such as the file.
        pairs: makes an object of its names and values.
        halves: whether halves of characters may stand in it, as for bytes that are not UTF-8.
        said: what errors say of it.

    Raises:
        CheckpointError: it is not JSON, is nested too deeply, or holds half a character.
    """
    text = content if isinstance(content, str) else _decoded(content, where, said)
    with translated(where, functools.partial(_fault_in_json, said, text)):
        _require_few(text, where)
        values = json.loads(text, object_pairs_hook=pairs)
    if isinstance(values, (dict, list)):
        require_shallow(values, where)
    if "\\u" in text and not halves:
        _require_characters(values, where)
    return values


def parse_object(content: bytes | str, where: object) -> dict[str, Any]:
    """The same for an object.

    Raises:
        CheckpointError: of `parse_json`, or it is something else.
    """
    values = parse_json(content, where)
    if not isinstance(values, dict):
        raise CheckpointError(where, f"must hold a JSON object, got {type(values).__name__}")
    return values


def parse_yaml(text: str, where: object) -> tuple[Any, tuple[str, int] | None]:
    """The value of a text in YAML.

    Args:
        text: as a whole.
        where: what errors name, such as the file.

    Returns:
        The value, and the first name that stands twice in one mapping, with the line of the second.

    Raises:
        CheckpointError: it is not YAML, is too long or nested too deeply, unfolds to too much, or
            holds half a character.
    """
    import yaml  # late: only training needs it

    if len(text) > (most := limit("yaml_bytes")):
        how = how_to_raise("yaml_bytes")
        raise CheckpointError(where, f"is longer than {most} characters: {how}")
    # Beside its own errors, what a tag such as !!bool does with a value raises anything.
    with translated(where, functools.partial(_fault_in_yaml, text)):
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _require_small(node, where)
        twice = next(_given_twice(node, set()), None)
        values = yaml.safe_load(text)
    _require_characters(values, where)
    return values, twice


def line_in_yaml(text: str, where: object, names: Sequence[str]) -> int | None:
    """The line of a name in a text that `parse_yaml` has read.

    Args:
        text: as a whole.
        where: what errors name.
        names: of the mappings that it stands in, from the outside, and its own.

    Returns:
        The number, from 1; None: it does not stand there.
    """
    import yaml

    with translated(where, functools.partial(_fault_in_yaml, text)):
        node, line = yaml.compose(text, Loader=yaml.SafeLoader), None
    for name in names:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        found = next(((key, value) for key, value in pairs if key.value == name), None)
        if found is None:
            return None
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _fault_in_yaml(text: str, error: BaseException) -> str:
    """What is wrong, in which line, without the lines that the parser quotes."""
    import yaml

    said, line = words_of(error), None
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        said = ", ".join(part for part in (error.context, error.problem) if part)
        line = error.problem_mark.line + 1
    elif isinstance(error, yaml.reader.ReaderError):
        said = f"it has the character U+{ord(text[error.position]):04X}, which may not stand in it"
        line = text.count("\n", 0, error.position) + 1
    return _with_line("is not valid YAML", said, line, text, error)


def _decoded(content: bytes, where: object, said: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        seen = recognise(content)
        why = f"it looks like {seen}" if seen else str(error)
        raise CheckpointError(where, f"{said}: {why}") from error


def _fault_in_json(said: str, text: str, error: BaseException) -> str:
    if text.startswith("\ufeff"):
        return f"{said}: it begins with a byte order mark; save it as UTF-8 without one"
    return _with_line(said, words_of(error), None, text, error)


def _with_line(what: str, said: str, line: int | None, text: str, error: BaseException) -> str:
    if type(error) is ValueError and (number := _LONG_NUMBER.search(text)):
        said = f"it has a number of {len(number[0])} digits, more than any value here has"
        line = text.count("\n", 0, number.start()) + 1
    return f"{what}: {shorten(said)}" + (f" (line {line})" if line else "")


def _require_few(text: str, where: object) -> None:
    """Of a text such as `[[],[],...`, values take 25 times the memory; of names, each 300 bytes."""
    items = sum(map(text.count, ",[{")) + _OF_A_NAME * text.count(":")
    if items > (most := limit("json_items")):
        how = how_to_raise("json_items")
        raise CheckpointError(where, f"has more than {most} items: {how}")


def require_shallow(values: Any, where: object) -> None:
    """Raise for a value of JSON that is nested too deeply for whoever looks at it next.

    Raises:
        CheckpointError: it is.
    """
    most, level = limit("json_depth"), [values]
    for _ in range(most):
        level = [item for value in level for item in _inner(value)]
        if not level:
            return
    how = how_to_raise("json_depth")
    raise CheckpointError(where, f"is nested more than {most} levels deep: {how}")


def _inner(value: Any) -> list[Any]:
    """What of a value holds values in turn."""
    items = value.values() if isinstance(value, dict) else value
    return [item for item in items if isinstance(item, (dict, list))]


def _require_characters(values: Any, where: object) -> None:
    """Half of a pair of escapes, as in "\\ud800", is not a character: nothing could write it."""
    try:
        json.dumps(values, ensure_ascii=False, default=str, skipkeys=True).encode("utf-8")
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise CheckpointError(
            where, f"holds the escape \\u{ord(half):04x}, which is half a character: remove it"
        ) from error


def _require_small(root: Any, where: object) -> None:
    """Count what a tree has with its aliases written out, each node looked at once."""
    most, deepest = limit("yaml_items"), limit("yaml_depth")
    counts: dict[int, int] = {}
    open_nodes: set[int] = set()

    def count(node: Any, depth: int) -> int:
        if id(node) in open_nodes:
            raise CheckpointError(where, "holds an alias of a value within itself: remove it")
        if depth > deepest:
            how = how_to_raise("yaml_depth")
            raise CheckpointError(where, f"is nested more than {deepest} levels deep: {how}")
        if id(node) not in counts:
            open_nodes.add(id(node))
            counts[id(node)] = 1 + sum(count(item, depth + 1) for item in _items(node))
            open_nodes.discard(id(node))
        if counts[id(node)] > most:
            how = how_to_raise("yaml_items")
            raise CheckpointError(
                where, f"unfolds to more than {most} items, with all aliases written out: {how}"
            )
        return counts[id(node)]

    if root is not None:
        count(root, 0)


def _items(node: Any) -> list[Any]:
    """What a node of YAML holds: items, or names and values."""
    if isinstance(node.value, str):
        return []
    return [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]


def _given_twice(node: Any, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Names that a mapping of the tree has twice, each with the line of the second."""
    if node is None or id(node) in seen or isinstance(node.value, str):
        return
    seen.add(id(node))
    names: set[str] = set()
    for item in node.value:
        key, value = item if isinstance(item, tuple) else (None, item)
        if key is not None and isinstance(key.value, str) and key.value != "<<":
            # Merges may be several.
            if key.value in names:
                yield key.value, key.start_mark.line + 1
            names.add(key.value)
        yield from _given_twice(value, seen)
