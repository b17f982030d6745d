"""Commands that a message tells the user to type."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_BYTE = re.compile("[\udc80-\udcff]")  # as Python keeps one that is not UTF-8


def command(*words: str | Path) -> str:
    """A command line for a shell, in which a path never reads as an option.

    Args:
        words: in order; paths as `Path`: one that begins with a dash is written `./-x`.
    """
    return " ".join(map(_written, words))


def _written(word: str | Path) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-") and text != "-":  # it reads as an option
        text = f"./{text}"
    return _by_bytes(text) if _BYTE.search(text) else shlex.quote(text)


def _by_bytes(text: str) -> str:
    r"""A word that is not UTF-8, as bash and zsh take it: `$'x\xff'`."""
    content = b"".join(
        letter.encode("utf-8", "surrogateescape" if _BYTE.match(letter) else "surrogatepass")
        for letter in text
    )
    shown = (
        chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
        for byte in content
    )
    return f"$'{''.join(shown)}'"
