"""Names that are in no list, and tell by their words and by what they hold what they are about.

Each data set has names of its own: `is_train`, `cal_loss`, `turnMask`, `tool_defs`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")  # also of names in camel case
_COUNTING = {
    *("train", "training", "trainable", "trained", "learn", "learning", "learnt", "learned"),
    *("loss", "losses", "mask", "masks", "masked", "weight", "weights", "weighted"),
    *("supervise", "supervised", "grad", "gradient", "backprop"),
}
_TOOLS = {"tool", "tools", "function", "functions", "api", "apis", "plugin", "plugins"}
_SCHEMAS = ("parameters", "input_schema", "inputSchema")


def may_tell(name: str) -> bool:
    """Whether a column has to be read to know what it says."""
    return not (_COUNTING | _TOOLS).isdisjoint(_words(name))


def tells_what_is_learnt(name: str, value: Any) -> bool:
    """Whether a value says what is learnt, as true or false or in a number from 0 to 1, or a list
    of such.
    """
    if _COUNTING.isdisjoint(_words(name)):
        return False
    items = value if isinstance(value, list) else [value]
    return bool(items) and all(isinstance(i, (bool, int, float)) and 0 <= i <= 1 for i in items)


def defines_tools(name: str, value: Any) -> bool:
    """Whether a value is a list of definitions of tools, as JSON schemas."""
    if _TOOLS.isdisjoint(_words(name)) or not isinstance(value, list) or not value:
        return False
    return all(isinstance(tool, Mapping) and _is_definition(tool) for tool in value)


def _is_definition(tool: Mapping[str, Any]) -> bool:
    inner = tool.get("function", tool)
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        return False
    return "function" in tool or any(key in inner for key in _SCHEMAS)


@functools.lru_cache(maxsize=4096)  # a data set has few names, in every record
def _words(name: str) -> frozenset[str]:
    return frozenset(word.lower() for word in _WORD.findall(name))
