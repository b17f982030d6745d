"""Directories from outside: each is looked into once, however many links lead to it.

Folders behind links are followed, and links may lead back to a folder above them; two in one folder
are enough for as many paths as there are grains of sand. So a folder is known by its device and
inode, and not by its name. What may not be read is a fault, and not a folder without files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Hashable

from diy_core.data.found import AGAIN, Found, shown

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Walk:
    """What is known of directories while sources are looked for.

    Args:
        found: is told of folders that come by another name.

    Attributes:
        faults: what may not be read, and why; a name may stand there once.
    """

    def __init__(self, found: Found) -> None:
        self.faults: list[str] = []
        self._found = found
        self._first_names: dict[Hashable, str] = {}
        self._told: set[str] = set()

    def names(self, folder: str, purpose: Hashable = None) -> list[str]:
        """What a directory holds, sorted.

        Args:
            folder: links are followed.
            purpose: a folder is looked into once for each.

        Returns:
            Nothing where it was looked into before, or may not be read, which is noted.
        """
        try:
            descriptor = os.open(folder, _OPEN)
            try:
                if not self._is_first(folder, os.fstat(descriptor), purpose):
                    return []
                return sorted(os.listdir(descriptor))
            finally:
                os.close(descriptor)
        except OSError as error:
            self.note(folder, error)
            return []

    def mode(self, path: str) -> int | None:
        """Of what a name leads to; None: that is a fault, which was noted."""
        try:
            return os.stat(path).st_mode
        except OSError as error:
            self.note(path, error)
            return None

    def pass_over(self, path: str, why: str) -> None:
        """Note something that is not read; the same once."""
        if path not in self._told:
            self._told.add(path)
            self._found.pass_over(path, why)

    def note(self, path: str, error: OSError) -> None:
        """Note that something cannot be read."""
        why = error.strerror or str(error)
        if error.errno == errno.ENAMETOOLONG:
            fault = f"cannot be read: its path has {len(os.fsencode(path)):,} bytes, more than the "
            fault += "system takes. Start in a folder above it, and name it from there"
        elif os.path.islink(path):
            leads = f"is a link to {_target(path)}, which cannot be reached"
            fault = f"{leads} ({why}): mend or remove the link"
        else:
            fault = f"cannot be read: {why}"
        if path not in self._told:
            self._told.add(path)
            self.faults.append(f"{shown(path)} {fault}")

    def knows(self, folder: str) -> bool:
        """Whether a folder was looked into, without another purpose."""
        try:
            return (None, _file(folder, os.stat(folder))) in self._first_names
        except OSError:
            return False

    def _is_first(self, folder: str, status: os.stat_result, purpose: Hashable) -> bool:
        path, key = os.path.normpath(folder), (purpose, _file(folder, status))
        first = self._first_names.get(key)
        if first is None:
            self._first_names[key] = path
        elif first != path:
            self.pass_over(path, AGAIN)
        return first is None


def _file(folder: str, status: os.stat_result) -> Hashable:
    # Some filesystems number nothing.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(folder)


def _target(link: str) -> str:
    try:
        return shown(os.readlink(link))
    except OSError:  # gone meanwhile
        return "somewhere"
