"""Putting what was written in the place of what stands there, without losing anything else.

What goes with the old one are its writer's own files. All others are kept, also those that come
while the new one is written. An own file that somebody changes meanwhile is not replaced: the write
is refused, unless it was another writer like this one that put it there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Set
from pathlib import Path

from diy_core.errors import CheckpointError
from diy_core.system.leaving import Moved, identity
from diy_core.system.mounts import refuse_mounts
from diy_core.system.permissions import hand_on
from diy_core.system.renaming import exchange, rename_new, sync, sync_tree
from diy_core.system.snapshots import Snapshot, carry, first_change, snapshot
from diy_core.system.stopping import uninterrupted
from diy_core.system.workplaces import Workplace, workplaces

_TRIES = 20  # so often may others move something there between a look and a move


class Replacement:
    """One write to one place.

    Args:
        work: where it is written.
        overwrite: whether what stands there is replaced.
        own: tells by its relative path which entry of a directory that stands there goes with it;
            None: all that are there now.
    """

    def __init__(
        self, work: Workplace, overwrite: bool, own: Callable[[str], bool] | None = None
    ) -> None:
        self.folder = work.new
        self._work, self._target, self._overwrite = work, work.target, overwrite
        self._before = self._look()[1]
        self._own = own or self._before.__contains__
        self._all = own is None
        self._carried: Snapshot = {}
        self._written: Set[str] = set()
        ours = {name for name in self._before if self._own(name)}
        # A directory with own files is the writer's, and what others put there is kept.
        self._refuse_held(self._before, ours - {above for name in ours for above in _above(name)})

    def _look(self) -> tuple[tuple[int, int] | None, Snapshot]:
        """What is there, and what is in it, of one and the same directory."""
        for _ in range(_TRIES):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if not os.path.lexists(self._target):
                    return None, {}
                there, found = identity(self._target), snapshot(self._target)
                if identity(self._target) == there:
                    return there, found
        raise _restless(self._target)

    def keep_others(self) -> None:
        """Carry over what is not the writer's own, as it is now; what is written here wins."""
        here = snapshot(self.folder)
        self._written = here.keys() - self._carried.keys()
        there_now = snapshot(self._target)
        self._refuse_held(there_now, {name for name in self._written if here[name]})
        for name, what in there_now.items():
            there = self._carried.get(name)
            if not (self._goes(name) or name in self._written or there == what):
                self._carried.pop(name, None)
                # Gone, or in another one by now; what may not be read is moved at the end.
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    carry(name, self._target, self.folder)
                    self._carried[name] = what

    def _refuse_held(self, found: Snapshot, names: Set[str]) -> None:
        """Raise where a name that is to be replaced is a directory with something of others."""
        for name in found:
            held = next((above for above in _above(name) if above in names), None)
            if held is not None and not self._goes(name):
                raise CheckpointError(
                    self._target / held,
                    f"would be replaced, but holds {name.removeprefix(f'{held}/')}, which this "
                    "program did not write: move it elsewhere, or choose another place",
                )

    def _goes(self, name: str) -> bool:
        return not name or self._own(name)

    def put_in_place(self) -> None:
        """Give what was written its name; what had that is then in the workplace.

        Raises:
            CheckpointError: it is not to be replaced, or somebody changed it meanwhile.
        """
        sync_tree(self.folder)
        with uninterrupted():
            self._put_in_place()

    def _put_in_place(self) -> None:
        new = identity(self.folder)
        self._note(new, self._work)
        for _ in range(_TRIES):
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                if not os.path.lexists(self._target):
                    rename_new(self.folder, self._target)
                elif not self._overwrite:
                    raise in_the_way(self._target)
                else:
                    self._replace(new)
                sync(self._target.parent)
                self._tell_others(new)
                return
        raise _restless(self._target)

    def _replace(self, new: tuple[int, int]) -> None:
        refuse_mounts(self._target)
        there, before = self._look()
        if self._is_of_another_writer(there):
            self._take_as_known(before)
        if self._target.is_dir():
            self.keep_others()
        self._refuse_changes(before)
        hand_on(self._target, self.folder, lambda name: name in before and self._goes(name))
        self._record(new, before)
        if exchange(self.folder, self._target):
            old = self.folder
        elif self._target.is_file():
            self.folder.replace(self._target)
            return
        else:
            old = self._work.old
            self._move_twice()
        try:
            late = snapshot(old)
            if identity(old) != there and self._is_of_another_writer(identity(old)):
                self._take_as_known(late)  # it came there in between
                self._record(new, late)
            else:
                self._refuse_changes(late)
        except CheckpointError:
            if old == self.folder:
                exchange(self.folder, self._target)
            else:
                self._target.rename(self.folder)
                old.rename(self._target)
            raise

    def _take_as_known(self, found: Snapshot) -> None:
        self._before = found
        if self._all:
            self._own = found.__contains__

    def _record(self, new: tuple[int, int], found: Snapshot) -> None:
        gone = (name for name in found if self._goes(name) or name in self._written)
        going = {name: found[name] for name in gone}
        Moved(new, going, self._carried).write(self._work)

    def _move_twice(self) -> None:
        """Should the process be killed in between, the next write moves the old one back."""
        self._target.rename(self._work.old)
        try:
            rename_new(self.folder, self._target)
        except FileExistsError:  # another writer's, which saw nothing to replace
            self._work.drop_old()
            raise

    def _refuse_changes(self, now: Snapshot) -> None:
        own = {name: what for name, what in now.items() if self._goes(name)}
        if (name := first_change(self._before, own)) is not None:
            raise CheckpointError(
                self._target / name,
                "was changed or added by somebody else while this was written, and is not "
                "replaced: look at it, then give the same command again",
            )

    def _is_of_another_writer(self, there: tuple[int, int] | None) -> bool:
        """Whether a write of ours, that went on beside this one, put there what is there now."""
        return there is not None and any(
            (work.path / _name(there)).exists() for work in workplaces(self._target)
        )

    def _tell_others(self, new: tuple[int, int]) -> None:
        """Until they ended, they know what this one has put there."""
        for other in workplaces(self._target):
            with contextlib.suppress(OSError):  # it ended
                self._note(new, other)

    @staticmethod
    def _note(new: tuple[int, int], work: Workplace) -> None:
        (work.path / _name(new)).touch()


def _above(name: str) -> list[str]:
    """The directories that a relative path leads through."""
    parts = name.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


def _name(of: tuple[int, int]) -> str:
    return f"by-{of[0]}-{of[1]}"


def in_the_way(path: Path) -> CheckpointError:
    """The error of a place that is not to be replaced."""
    return CheckpointError(path, "exists already: overwrite=True replaces it")


def _restless(path: Path) -> CheckpointError:
    return CheckpointError(path, "is moved by others all the time: try again later")
