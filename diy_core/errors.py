"""The one error of files that cannot be trusted; how errors list values and name places."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path


def listed(values: Iterable[object]) -> str:
    """Such as `silu, swish`: what there is to choose from, or what is read."""
    return ", ".join(map(str, values))


_LONGEST = 2000  # characters: a damaged file may have names and values of megabytes
_LONGEST_ECHO = 200  # a path in the wrong place is shown whole


def shorten(text: str) -> str:
    """Text that a file had a hand in, cut to what a person reads."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def echoed(text: str) -> str:
    """What somebody typed, in quotes, as an error repeats it: enough of it to be recognised."""
    if len(text) <= _LONGEST_ECHO:
        return repr(text)
    return f"{text[:_LONGEST_ECHO]!r}... ({len(text):,} characters)"


class CheckpointError(ValueError):
    """A checkpoint is missing something, holds something wrong, or cannot be read.

    All faults that were found are in `faults`; the message lists the first of them.
    """

    _SHOWN = 20

    def __init__(self, where: object, faults: Sequence[str] | str) -> None:
        self.where = where
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        texts = [shorten(text) for text in self.faults[: self._SHOWN]]
        if len(self.faults) == 1:
            super().__init__(f"{where}: {texts[0]}")
            return
        shown = [f"  - {text}" for text in texts]
        if len(self.faults) > self._SHOWN:
            shown.append(f"  - and {len(self.faults) - self._SHOWN} more")
        super().__init__("\n".join([f"{where}: {len(self.faults)} faults", *shown]))

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[object, list[str]]]:
        """How it comes from another process: its message alone would not make it."""
        return type(self), (self.where, self.faults)

    def rename(self, old: str, new: str) -> None:
        """Call a place by another name, wherever it is named.

        Args:
            old: as it stands in the message, such as a temporary file.
            new: as the user knows it.
        """
        where = str(self.where)
        renamed = CheckpointError(
            where.replace(old, new) if old in where else self.where,
            [fault.replace(old, new) for fault in self.faults],
        )
        self.where, self.faults, self.args = renamed.where, renamed.faults, renamed.args


@contextlib.contextmanager
def naming(temporary: Path, name: Path) -> Iterator[None]:
    """Inside, errors that name a temporary place name what it stands for.

    Args:
        temporary: a file or directory that is gone when the user reads of it.
        name: what the user gave.
    """
    old, new = str(temporary), str(name)
    try:
        yield
    except CheckpointError as error:
        error.rename(old, new)
        raise
    except OSError as error:
        for key in ("filename", "filename2"):
            value = getattr(error, key)
            if value is not None and old in os.fsdecode(value):
                setattr(error, key, os.fsdecode(value).replace(old, new))
        raise
    except ValueError as error:
        error.args = tuple(
            part.replace(old, new) if isinstance(part, str) else part for part in error.args
        )
        raise
