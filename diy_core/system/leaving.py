"""What becomes of a workplace: after a write, or when its writer was killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

from diy_core.system.permissions import hand_on_entry
from diy_core.system.renaming import sync, sync_tree
from diy_core.system.snapshots import Snapshot, carry, remove_entries, snapshot
from diy_core.system.standard_error import complain
from diy_core.system.stopping import uninterrupted
from diy_core.system.workplaces import Workplace, abandoned, workplaces

_ROUNDS = 10


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
    with uninterrupted():
        _leave(work)


def _leave(work: Workplace) -> None:
    try:
        if os.path.lexists(work.old) and not os.path.lexists(work.target):
            work.old.rename(work.target)
            sync(work.target.parent)
        elif (moved := Moved.read(work)) is not None and not _let_go(work, moved):
            complain(
                f"{work.path} is kept: it has files of somebody else, which came while "
                f"{work.target} was replaced: move what you need, then remove it"
            )
            return
        work.remove()
    except OSError as error:
        complain(
            f"{work.path} could not be removed ({error.strerror}: {error.filename}): the next "
            f"write to {work.target} tries again"
        )


def _let_go(work: Workplace, moved: Moved) -> bool:
    """Carry over what came late to what was replaced, and remove the rest; whether it is all gone.

    What is removed was seen before. What comes still later is seen in the next round, until the
    directory is gone and nothing can come to it any more.
    """
    place = work.old if os.path.lexists(work.old) else work.new
    if os.path.lexists(work.new) and place != work.new:
        return False  # it was not what was written that replaced it
    known = moved.going | moved.carried
    for _ in range(_ROUNDS):
        if not os.path.lexists(place) or identity(place) == moved.new:
            return True  # nothing is left, or it came to no move
        found = snapshot(place)
        late = [name for name, what in found.items() if known.get(name) != what]
        with contextlib.suppress(FileNotFoundError):  # another writer replaces the new one
            if any(name in moved.going or _collides(place, work, name, moved) for name in late):
                return False
            _carry_all(late, place, work.target)
            known |= found
            remove_entries(place, found)
    return not late


def _carry_all(names: list[str], old: Path, new: Path) -> None:
    for name in names:
        carry(name, old, new, move=True)
    for name in reversed(names):
        if os.path.lexists(old / name):  # else it was moved, with all that it has
            hand_on_entry(old / name, new / name)
    for name in names:
        with contextlib.suppress(PermissionError):  # it was moved: nothing of it is new
            sync_tree(new / name)
        sync((new / name).parent)


def _collides(old: Path, work: Workplace, name: str, moved: Moved) -> bool:
    """Whether another file has the name of one that is to be carried over."""
    there = work.target / name
    if name in moved.carried or not os.path.lexists(there) or there.is_dir():
        return False
    return not os.path.samestat((old / name).lstat(), there.lstat())
