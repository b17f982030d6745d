"""What a reader passed over, or took another way than it stands there: said, or refused.

A checkpoint that is legitimate and odd is read. Whatever was odd about it is a note: one sentence,
kept by the reader (`Reader.notes`, `Tokenizer.notes`). `from_pretrained` warns of notes, commands
print them as lines on standard error, and `strict` (`--strict`) turns them into an error.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from diy_core.errors import CheckpointError, shorten
from diy_core.system.standard_error import complain

_SAID = 100  # of one thing; a file with an oddity in each of its tokens would flood the screen
_KEPT = 30  # of one kind


class CheckpointNote(UserWarning):
    """Something odd about a checkpoint that does not change the function it describes."""


class _Command:
    """What a command does with notes: it says each of them once."""

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self._said: set[str] = set()

    def say(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            complain(f"note: {line}")


_COMMAND: contextvars.ContextVar[_Command | None] = contextvars.ContextVar("command", default=None)


def refuse(where: object, notes: Sequence[str], *, strict: bool = False) -> None:
    """Refuse notes where that was asked for, here or on the command line.

    Args:
        where: what the notes are about, usually a path.
        notes: one sentence each.
        strict: whether it was asked for here.

    Raises:
        CheckpointError: there are notes, and they are refused; it has all of them.
    """
    command = _COMMAND.get()
    if notes and (strict or (command is not None and command.strict)):
        raise CheckpointError(where, [f"{note} (refused: strict)" for note in notes])


def settle(
    where: object, notes: Sequence[str], *, strict: bool = False, stacklevel: int = 3
) -> None:
    """Say each note, of very many the first ones and how many more there are; or refuse them.

    Args:
        where: what the notes are about, usually a path.
        notes: one sentence each.
        strict: raise instead.
        stacklevel: of the warnings: 3 is the caller of the function that calls this one.

    Raises:
        CheckpointError: of `refuse`.
    """
    refuse(where, notes, strict=strict)
    command = _COMMAND.get()
    said, more = [*map(shorten, notes[:_SAID])], len(notes) - _SAID
    if more > 0:
        said.append(_and_more(more))
    for note in said:
        if command is None:
            warnings.warn(f"{where}: {note}", CheckpointNote, stacklevel=stacklevel)
        else:
            command.say(f"{where}: {note}")


def of_many(notes: Iterable[str]) -> list[str]:
    """The first of notes of one kind, and a last one on how many more there are.

    Whoever reads hundreds of thousands of odd tokens need not keep a sentence on each.
    """
    notes = iter(notes)
    kept = list(itertools.islice(notes, _KEPT))
    more = sum(1 for _ in notes)
    return [*kept, _and_more(more)] if more else kept


def _and_more(count: int) -> str:
    return f"and {count:,} more such notes" if count > 1 else "and one more such note"


@contextlib.contextmanager
def notes_of_command(strict: bool = False) -> Iterator[None]:
    """Inside, notes are lines on standard error, each said once; or all refused, with `strict`."""
    token = _COMMAND.set(_Command(strict))
    try:
        yield
    finally:
        _COMMAND.reset(token)


@contextlib.contextmanager
def notes_refused(strict: bool) -> Iterator[None]:
    """Inside, notes are refused wherever they are, if `strict`; else they are what they were."""
    with notes_of_command(strict=True) if strict else contextlib.nullcontext():
        yield


def add_strict(parser: Any, what: str = "a checkpoint") -> None:
    """Give the parser of a command that opens checkpoints, or such a thing, its `--strict`."""
    parser.add_argument(
        "--strict",
        action="store_true",
        help=f"refuse {what} that is odd but means the same (default: it is read, with a "
        "note on standard error)",
    )
