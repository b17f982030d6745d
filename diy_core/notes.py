"""What a reader passed over, or took another way than it stands there: said, or refused.

A checkpoint that is legitimate and odd is read. Whatever was odd about it is a note: one sentence,
kept by the reader (`Reader.notes`, `Tokenizer.notes`). Command lines print notes, `from_pretrained`
warns of them, and `strict` turns them into an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from diy_core.errors import CheckpointError


class CheckpointNote(UserWarning):
    """Something odd about a checkpoint that does not change the function it describes."""


def settle(where: object, notes: Sequence[str], *, strict: bool = False) -> None:
    """Warn of each note, or refuse all of them.

    Args:
        where: what the notes are about, usually a path.
        notes: one sentence each.
        strict: raise instead of warning.

    Raises:
        CheckpointError: there are notes, and `strict` was asked for; it has all of them.
    """
    if strict and notes:
        raise CheckpointError(where, [f"{note} (refused: strict)" for note in notes])
    for note in notes:
        warnings.warn(f"{where}: {note}", CheckpointNote, stacklevel=3)
