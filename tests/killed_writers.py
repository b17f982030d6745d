"""What a writer leaves that was killed between two moves, where names cannot be exchanged."""

from __future__ import annotations

from pathlib import Path

from diy_core.system.workplaces import open_workplace


def kill_between_moves(path: Path) -> Path:
    """Move a directory aside as such a writer does, which is dead by then; where it is."""
    with open_workplace(path) as work:
        path.rename(work.old)
    return work.old
