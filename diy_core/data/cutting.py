"""Where a stream of bytes is cut into parts. The cut depends on the bytes alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class TooLong(Exception):
    """A document is longer than it may be."""


@dataclass(frozen=True)
class Cut:
    """A stream, cut.

    Attributes:
        ends: where each part ends; the last is the size of the stream.
        lines: line breaks in front of each part, where parts end with one.
        separated: whether the separator is anywhere in it.
    """

    ends: list[int]
    lines: list[int]
    separated: bool


def cut(blocks: Iterable[bytes], between: bytes, least: int, most: int | None) -> Cut:
    """Cut a stream behind the first separator at or after each `least` bytes of a part.

    Args:
        blocks: the stream.
        between: the separator; empty: it is one part.
        least: bytes of a part.
        most: bytes that may follow them without a separator; None: any number.

    Raises:
        TooLong: there are more. No more than that was read then, however long the stream is.
    """
    ends: list[int] = []
    lines = [0]
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
            ends.append(begun)
            breaks += view.count(b"\n", counted, at + len(between))
            counted = at + len(between)
            lines.append(breaks)
        breaks += view.count(b"\n", counted)
        if most is not None and size - begun > least + most:
            raise TooLong
        rest = view[max(0, len(view) - max(0, len(between) - 1)) :]  # a separator may begin there
        base = size - len(rest)
    if not ends or ends[-1] != size:
        ends.append(size)
    return Cut(ends, lines[: len(ends)], separated)
