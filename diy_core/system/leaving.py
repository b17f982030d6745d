"""What becomes of a workplace: after a write, or when its writer was killed."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from diy_core.standard_error import complain
from diy_core.system.permissions import hand_on_entry
from diy_core.system.renaming import sync, sync_tree
from diy_core.system.snapshots import Snapshot, carry, snapshot
from diy_core.system.workplaces import Workplace, abandoned, workplaces


@dataclasses.dataclass(frozen=True)
class Moved:
    """What was known just before a move.

    Attributes:
        new: the identity of what was written.
        going: of the old one, what is replaced.
        carried: of the old one, what the new one has too.
    """

    new: tuple[int, int]
    going: Snapshot
    carried: Snapshot

    def write(self, work: Workplace) -> None:
        """Put it on the disk, whole or not at all."""
        part = work.record.with_name("moved.part")
        part.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")
        sync(part)
        part.replace(work.record)
        sync(work.path)

    @classmethod
    def read(cls, work: Workplace) -> Moved | None:
        """What a writer wrote; None: it came to no move."""
        try:
            values = json.loads(work.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        device, inode = values["new"]
        return cls((device, inode), _snapshot(values["going"]), _snapshot(values["carried"]))


def _snapshot(values: dict[str, list[int]]) -> Snapshot:
    return {name: tuple(what) for name, what in values.items()}


def identity(path: Path) -> tuple[int, int]:
    """Device and inode."""
    found = path.lstat()
    return found.st_dev, found.st_ino


def clean_up(target: Path) -> None:
    """Undo what killed writers left beside a target: restore the old one, remove the remains."""
    with abandoned(target) as found:
        for work in found:
            leave(work)


def left_aside(target: Path) -> Path | None:
    """Where the directory is that a killed writer moved aside and did not replace, or None."""
    if os.path.lexists(target):
        return None
    return next((work.old for work in workplaces(target) if os.path.lexists(work.old)), None)


def leave(work: Workplace) -> None:
    """Remove a workplace that is held; what of the old one nobody has then is restored or kept."""
    try:
        if os.path.lexists(work.old) and not os.path.lexists(work.target):
            work.old.rename(work.target)
            sync(work.target.parent)
        elif place := _with_others_files(work):
            complain(
                f"{place} is kept: it has files that came while {work.target} was replaced: move "
                f"what you need, then remove {work.path}"
            )
            return
        work.remove()
    except OSError as error:
        complain(
            f"{work.path} could not be removed ({error.strerror}: {error.filename}): the next "
            f"write to {work.target} tries again"
        )


def _with_others_files(work: Workplace) -> Path | None:
    """Carry over what came late to what was replaced; where that is, if something of it cannot."""
    moved = Moved.read(work)
    place = work.old if os.path.lexists(work.old) else work.new
    if moved is None or not os.path.lexists(place) or identity(place) == moved.new:
        return None
    if os.path.lexists(work.new) and place != work.new:
        return place  # it was not what was written that replaced it
    late = {
        name: what
        for name, what in snapshot(place).items()
        if what not in (moved.going.get(name), moved.carried.get(name))
    }
    for name in late:
        if name in moved.going or (name not in moved.carried and _is_there(work.target / name)):
            return place
        carry(name, place, work.target)
    for name in reversed(late):
        hand_on_entry(place / name, work.target / name)
    if late:
        sync_tree(work.target)
    return None


def _is_there(path: Path) -> bool:
    return os.path.lexists(path) and not path.is_dir()
