"""What replaces a file or a directory may be read by nobody who could not read that."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_GROUP, _OTHERS = stat.S_IRWXG | stat.S_ISGID, stat.S_IRWXO
_OWNER = stat.S_IRWXU
_ACL = "system.posix_acl_"  # extended attributes of this name widen or narrow what the mode says


def hand_on(old: Path, new: Path, goes: Callable[[str], bool]) -> None:
    """Give a new file, or a new directory with all in it, what the old one has.

    Each takes owner, group, mode and access control list from what has its name in the old one.
    What has no namesake belongs to whom the old one does, and is open to nobody to whom some file
    that goes was closed. Whatever may not be handed on narrows the mode.

    Args:
        old: stays as it is.
        new: what takes its place.
        goes: whether the entry of this relative path in the old one is replaced, and not kept.
    """
    if not (new.is_dir() and old.is_dir()):
        hand_on_entry(old, new)
        return
    going = [path for path in _below(old) if goes(str(path.relative_to(old)))]
    ceilings = {
        False: _common(path for path in going if not _is_folder(path)),
        True: _common([old, *(path for path in going if _is_folder(path))]),
    }
    for path in _below(new):
        namesake = old / path.relative_to(new)
        if _is_folder(namesake) == _is_folder(path) and os.path.lexists(namesake):
            hand_on_entry(namesake, path)
        else:
            _narrow(path, old, ceilings[_is_folder(path)])
    hand_on_entry(old, new)


def hand_on_entry(old: Path, new: Path) -> None:
    """The same for one file or directory, without what is in it."""
    if new.is_symlink() or old.is_symlink() or os.path.samefile(old, new):
        return
    found = old.stat()
    mode = stat.S_IMODE(found.st_mode)
    if not _own(new, found.st_uid, found.st_gid) or not _copy_access_list(old, new):
        mode &= ~_GROUP
    new.chmod(mode)


def _common(paths: Iterable[Path]) -> int:
    """What all of some files, or of some directories, permit."""
    mode = 0o7777
    for path in paths:
        if not path.is_symlink():
            mode &= path.lstat().st_mode
    return mode


def _narrow(path: Path, old: Path, ceiling: int) -> None:
    if path.is_symlink():
        return
    found = old.stat()
    mode = stat.S_IMODE(path.stat().st_mode)
    if not _own(path, found.st_uid, found.st_gid):
        mode &= ~_GROUP
    path.chmod(mode & (ceiling | _OWNER))


def _own(path: Path, user: int, group: int) -> bool:
    """Hand on owner and group, as far as that is permitted; whether the group is right now."""
    found = path.stat()
    if (found.st_uid, found.st_gid) != (user, group):
        with contextlib.suppress(OSError):
            os.chown(path, user, -1)
        with contextlib.suppress(OSError):
            os.chown(path, -1, group)
    return path.stat().st_gid == group


def _copy_access_list(old: Path, new: Path) -> bool:
    """Have the access control list of `old`, or none; whether that was possible."""
    wanted = _access_lists(old)
    try:
        for name in wanted:
            os.setxattr(new, name, os.getxattr(old, name))
        for name in _access_lists(new) - wanted:  # inherited from the directory above
            os.removexattr(new, name)
    except OSError:
        return False
    return True


def _access_lists(path: Path) -> set[str]:
    try:
        return {name for name in os.listxattr(path) if name.startswith(_ACL)}
    except (OSError, AttributeError):  # the file system, or the system, has none
        return set()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            yield Path(place) / name
