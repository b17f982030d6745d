"""Changes of a config that are meant: `--allow-changes`."""

from __future__ import annotations

from collections.abc import Iterable

# How data are read: another value, and there are other tokens.
READING = {f"data.{name}" for name in ("train", "validation", "separator", "field", "tokenizer")}


class Allowed:
    """Which changes are meant, as `--allow-changes` names them.

    Args:
        keys: options; one that has parts (`optimizer`, `model`) stands for all of them, and one
            that says how data are read for the tokens, too.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._keys = set(keys)
        if self._keys & {"data", *READING}:
            self._keys |= {"data.train", "data.validation"}

    def __contains__(self, key: str) -> bool:
        return any(key == one or key.startswith(f"{one}.") for one in self._keys)


NOTHING = Allowed()
