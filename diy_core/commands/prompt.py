"""The prompt as people give it: a word of the command line, or standard input."""

from __future__ import annotations

import os
import sys

from diy_core.system.limits import VARIABLE, limit
from diy_core.system.utf8 import NotUTF8, decode


def read_prompt(word: str) -> str:
    """The text of a prompt; `-` reads it from standard input, without the line break at its end.

    Args:
        word: of the command line, in which Python keeps bytes that are not UTF-8.

    Raises:
        ValueError: it is not UTF-8; the message has the place and what it looks like. Or it is
            longer than `require_short` allows.
    """
    where, content = "PROMPT", b""
    if word == "-":  # which may have no end
        where, content = "standard input", sys.stdin.buffer.read(limit("prompt_bytes") + 1)
    else:
        content = os.fsencode(word)
    _require_short(content, where)
    try:
        text = decode(content).removeprefix("\ufeff")
    except NotUTF8 as error:
        raise ValueError(f"{where}: {error}") from error
    if word != "-":
        return text
    # `echo TEXT` and editors end a text with a line break that nobody means.
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def require_short(text: str, where: str) -> None:
    """Raise for a text that is too long to be tokenized, which takes long itself.

    Args:
        text: of a prompt, as it is to be tokenized.
        where: what the error calls it.

    Raises:
        ValueError: it is longer than the limit `prompt_bytes`.
    """
    _require_short(text.encode("utf-8", "surrogatepass"), where)


def _require_short(content: bytes, where: str) -> None:
    if len(content) > (most := limit("prompt_bytes")):
        raise ValueError(
            f"{where} is longer than {most:,} bytes: shorten it, or raise the limit with "
            f"{VARIABLE}=prompt_bytes=N"
        )
