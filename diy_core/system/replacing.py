"""Putting what was written in the place of what stands there, without losing anything else.

What goes with the old one are its writer's own files. All others are kept, also those that come
while the new one is written. An own file that somebody changes meanwhile is not replaced: the write
is refused, unless it was another writer like this one that put it there.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from diy_core.errors import CheckpointError
from diy_core.system.leaving import Moved, identity
from diy_core.system.mounts import refuse_mounts
from diy_core.system.permissions import hand_on
from diy_core.system.renaming import exchange, rename_new, sync, sync_tree
from diy_core.system.snapshots import Snapshot, carry, first_change, snapshot
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
        self._before = snapshot(work.target)
        self._own = own or self._before.__contains__
        self._all = own is None
        self._carried: Snapshot = {}

    def keep_others(self) -> None:
        """Carry over what is not the writer's own, as it is now; what is written here wins."""
        written = snapshot(self.folder).keys() - self._carried.keys()
        for name, what in snapshot(self._target).items():
            there = self._carried.get(name)
            if not (self._goes(name) or name in written or there == what):
                carry(name, self._target, self.folder)
                self._carried[name] = what

    def _goes(self, name: str) -> bool:
        return not name or self._own(name)

    def put_in_place(self) -> None:
        """Give what was written its name; what had that is then in the workplace.

        Raises:
            CheckpointError: it is not to be replaced, or somebody changed it meanwhile.
        """
        sync_tree(self.folder)
        for _ in range(_TRIES):
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                if not os.path.lexists(self._target):
                    rename_new(self.folder, self._target)
                elif not self._overwrite:
                    raise in_the_way(self._target)
                else:
                    self._replace()
                sync(self._target.parent)
                self._tell_others()
                return
        raise CheckpointError(self._target, "is moved by others all the time: try again later")

    def _replace(self) -> None:
        refuse_mounts(self._target)
        if self._is_of_another_writer():
            self._before = snapshot(self._target)
            if self._all:
                self._own = self._before.__contains__
        if self._target.is_dir():
            self.keep_others()
        before = snapshot(self._target)
        self._refuse_changes(self._before, before)
        going = {n: what for n, what in before.items() if n not in self._carried}
        hand_on(self._target, self.folder, going.__contains__)
        Moved(identity(self.folder), going, self._carried).write(self._work)
        if exchange(self.folder, self._target):
            old = self.folder
        elif self._target.is_file():
            self.folder.replace(self._target)
            return
        else:
            old = self._work.old
            self._move_twice()
        try:
            self._refuse_changes(before, snapshot(old))
        except CheckpointError:
            if old == self.folder:
                exchange(self.folder, self._target)
            else:
                self._target.rename(self.folder)
                old.rename(self._target)
            raise

    def _move_twice(self) -> None:
        """Should the process be killed in between, the next write moves the old one back."""
        self._target.rename(self._work.old)
        try:
            rename_new(self.folder, self._target)
        except FileExistsError:  # another writer's, which saw nothing to replace
            self._work.drop_old()
            raise

    def _refuse_changes(self, before: Snapshot, now: Snapshot) -> None:
        own = {name: what for name, what in now.items() if self._goes(name)}
        if (name := first_change(before, own)) is not None:
            raise CheckpointError(
                self._target / name,
                "was changed by somebody else while this was written, and is not replaced: look at "
                "it, then give the same command again",
            )

    def _is_of_another_writer(self) -> bool:
        """Whether a write of ours, that went on beside this one, put there what is there now."""
        there = identity(self._target)
        return (self._work.path / _note(there)).exists() or any(
            (moved := Moved.read(other)) is not None and moved.new == there
            for other in workplaces(self._target)
        )

    def _tell_others(self) -> None:
        for other in workplaces(self._target):
            if other != self._work:
                with contextlib.suppress(OSError):  # it ended
                    (other.path / _note(identity(self._target))).touch()


def _note(of: tuple[int, int]) -> str:
    return f"by-{of[0]}-{of[1]}"


def in_the_way(path: Path) -> CheckpointError:
    """The error of a place that is not to be replaced."""
    return CheckpointError(path, "exists already: overwrite=True replaces it")
