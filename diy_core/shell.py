"""Commands that a message tells the user to type."""

from __future__ import annotations

import shlex
from pathlib import Path


def command(*words: str | Path) -> str:
    """A command line for a shell, in which a path never reads as an option.

    Args:
        words: in order; paths as `Path`: one that begins with a dash is written `./-x`.
    """
    return shlex.join(map(_written, words))


def _written(word: str | Path) -> str:
    text = str(word)
    reads_as_option = isinstance(word, Path) and text.startswith("-") and text != "-"
    return f"./{text}" if reads_as_option else text
