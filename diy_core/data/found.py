"""What was found of sources, and why the rest is not read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Why something is not read.
HIDDEN = "hidden"
LEFT_BEHIND = "left behind by other programs"
ARCHIVE = "archives, to be unpacked first"
OTHER_KIND = "of a kind that is not read"
ABOUT = "about the data"
EMPTY = "empty"
NO_FILE = "neither files nor folders"
AGAIN = "the same under another name"
FOLDER = "folders that a pattern matched"
NOWHERE = "links that lead nowhere"
PREPARED = "prepared data"
RUN = "training runs"
REVISION = "another revision in a cache of a hub"
_LONGEST = 300  # characters of a name that are shown; a path may have 4,095 bytes


@dataclass
class Found:
    """The files of sources.

    Attributes:
        paths: to be read, as they were given, each file once, in a fixed order.
        named: those of `paths` that were given by their own name.
        passed_over: names of files and folders by the reason, in the order in which they were met.
    """

    paths: list[str] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    passed_over: dict[str, list[str]] = field(default_factory=dict)

    def pass_over(self, path: str | Path, why: str) -> None:
        """Note something that is not read."""
        name = shown(path) + "/" * os.path.isdir(path)
        self.passed_over.setdefault(why, []).append(name)


def shown(path: str | Path) -> str:
    """A name as it can be printed and kept, in one line of UTF-8; names may be any bytes."""
    text = Path(path).as_posix().encode(errors="backslashreplace").decode()
    if not text.isprintable():
        text = "".join(
            letter if letter.isprintable() else letter.encode("unicode_escape").decode()
            for letter in text
        )
    left = len(text) - _LONGEST
    return text if left <= 0 else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


def folded(names: Sequence[str], most: int = 3, of: int | None = None) -> str:
    """Names in a line: the first of them, and how many more there are.

    Args:
        names: all of them, or the first.
        most: that are written out.
        of: how many there are; None: `names` has all.
    """
    shown = names[:most]
    left = (len(names) if of is None else of) - len(shown)
    return ", ".join(shown) + (f" and {left:,} more" if left else "")
