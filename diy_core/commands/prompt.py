"""The prompt as people give it: a word of the command line, or standard input."""

from __future__ import annotations

import os
import sys

from diy_core.system.utf8 import NotUTF8, decode


def read_prompt(word: str) -> str:
    """The text of a prompt; `-` reads it from standard input, without the line break at its end.

    Args:
        word: of the command line, in which Python keeps bytes that are not UTF-8.

    Raises:
        ValueError: it is not UTF-8; the message has the place and what it looks like.
    """
    where, content = "PROMPT", b""
    try:
        if word == "-":
            where, content = "standard input", sys.stdin.buffer.read()
        else:
            content = os.fsencode(word)
        text = decode(content).removeprefix("\ufeff")
    except NotUTF8 as error:
        raise ValueError(f"{where}: {error}") from error
    if word != "-":
        return text
    # `echo TEXT` and editors end a text with a line break that nobody means.
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
