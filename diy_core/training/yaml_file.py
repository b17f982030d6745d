"""Config files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from diy_core.system.outside import is_there, read_bytes


def read_yaml(file: Path) -> Mapping[str, Any]:
    """Names and values of a YAML file.

    Raises:
        ValueError: no file there, no YAML, something else than names and values, or a name that is
            given twice, of which YAML would take the last.
    """
    if file.is_dir():
        raise ValueError(f"--config: {file} is a directory: give one file")
    if not is_there(file):
        raise ValueError(f"--config: there is no file {file}")
    try:
        text = read_bytes(file).decode("utf-8")
        twice = next(_given_twice(yaml.compose(text, Loader=yaml.SafeLoader), set()), None)
        values = yaml.safe_load(text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    if twice is not None:
        raise ValueError(f"{file}, line {twice[1]}: {twice[0]} is given twice: keep one of them")
    if not isinstance(values, Mapping):
        raise ValueError(f"{file} must hold names and values, got {values!r:.100}")
    return values


def _given_twice(node: Any, seen: set[int]) -> Iterator[tuple[str, int]]:
    """Names that a mapping of the tree has twice, each with the line of the second."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    names: set[str] = set()
    for item in node.value:
        key, value = item if isinstance(node, yaml.MappingNode) else (None, item)
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":  # merges may be several
            if key.value in names:
                yield key.value, key.start_mark.line + 1
            names.add(key.value)
        yield from _given_twice(value, seen)
