"""Where a stream of bytes is cut into parts. The cut depends on the bytes alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass


class TooLong(Exception):
    """A document is longer than it may be.

    Attributes:
        line: the number of its line, where documents are lines.
    """

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


@dataclass(frozen=True)
class Cut:
    """A stream, cut.

    Attributes:
        ends: where each part ends; the last is the size of the stream.
        lines: line breaks in front of each part, where parts end with one.
        sums: the sha256 of each part.
        separated: whether the separator is anywhere in it.
    """

    ends: list[int]
    lines: list[int]
    sums: list[str]
    separated: bool


def cut(blocks: Iterable[bytes], between: bytes, least: int, most: int) -> Cut:
    """Cut a stream behind the first separator at or after each `least` bytes of a part.

    Args:
        blocks: the stream.
        between: the separator; empty: it is one part.
        least: bytes of a part.
        most: bytes that may follow them without a separator.

    Raises:
        TooLong: there are more. No more than that was read then, however long the stream is.
    """
    ends: list[int] = []
    lines, sums, digest = [0], [], hashlib.sha256()
    size = begun = base = breaks = 0
    separated, rest = False, b""
    for block in blocks:
        view = rest + block
        size += len(block)
        counted = len(rest)
        separated = separated or (bool(between) and between in view)
        while between:
            at = view.find(between, max(begun + least - base, 0))
            if at < 0:
                break
            begun = base + at + len(between)
            breaks += view.count(b"\n", counted, at + len(between))
            if begun - (ends[-1] if ends else 0) > least + most:
                raise TooLong(breaks)
            ends.append(begun)
            digest.update(memoryview(view)[counted : at + len(between)])
            sums.append(digest.hexdigest())
            counted, digest = at + len(between), hashlib.sha256()
            lines.append(breaks)
        breaks += view.count(b"\n", counted)
        digest.update(memoryview(view)[counted:])
        if size - begun > least + most:
            raise TooLong(breaks + 1)
        rest = view[max(0, len(view) - max(0, len(between) - 1)) :]  # a separator may begin there
        base = size - len(rest)
    if not ends or ends[-1] != size:
        ends.append(size)
        sums.append(digest.hexdigest())
    return Cut(ends, lines[: len(ends)], sums, separated)
