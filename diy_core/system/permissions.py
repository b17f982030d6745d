"""What replaces a file or a directory may be read by nobody who could not read that."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from diy_core.system.standard_error import complain

_GROUP, _OTHERS = stat.S_IRWXG | stat.S_ISGID, stat.S_IRWXO
_OWNER = stat.S_IRWXU
_USERS = "user."  # extended attributes of this name are what people and their programs noted
_ACL = "system.posix_acl_"  # extended attributes of this name widen or narrow what the mode says


def hand_on(old: Path, new: Path, goes: Callable[[str], bool]) -> None:
    """Give a new file, or a new directory with all in it, what the old one has.

    Each takes owner, group, mode, access control list and the extended attributes of users from
    what has its name in the old one. Attributes that may not be handed on are said, in one line.
    What has no namesake belongs to whom the old one does, and is open to nobody to whom some file
    that goes was closed. Whatever may not be handed on narrows the mode.

    Args:
        old: stays as it is.
        new: what takes its place.
        goes: whether the entry of this relative path in the old one is replaced, and not kept.
    """
    both = new.is_dir() and old.is_dir()
    lost = _hand_on_below(old, new, goes) if both else []
    lost += hand_on_entry(old, new)  # last: its mode may forbid to look into it
    if lost:
        more = f" and {len(lost) - 1} more" if lost[1:] else ""
        complain(f"note: {old}: extended attributes are not handed on: {lost[0]}{more}")


def _hand_on_below(old: Path, new: Path, goes: Callable[[str], bool]) -> list[str]:
    lost: list[str] = []
    going = [path for path in _below(old) if goes(str(path.relative_to(old)))]
    ceilings = {
        False: _common(path for path in going if not _is_folder(path)),
        True: _common([old, *(path for path in going if _is_folder(path))]),
    }
    for path in _below(new):
        namesake = old / path.relative_to(new)
        if _is_folder(namesake) == _is_folder(path) and os.path.lexists(namesake):
            lost += hand_on_entry(namesake, path)
        else:
            _narrow(path, old, ceilings[_is_folder(path)])
    return lost


def hand_on_entry(old: Path, new: Path) -> list[str]:
    """The same for one file or directory, without what is in it.

    Returns:
        Which extended attributes of users could not be handed on, and why.
    """
    if new.is_symlink() or old.is_symlink() or os.path.samefile(old, new):
        return []
    lost = _copy_attributes(old, new)  # first: the mode may forbid it
    found = old.stat()
    mode = stat.S_IMODE(found.st_mode)
    if not _own(new, found.st_uid, found.st_gid) or not _copy_access_list(old, new):
        mode &= ~_GROUP
    new.chmod(mode)
    return lost


def _copy_attributes(old: Path, new: Path) -> list[str]:
    lost = []
    for name in sorted(_attributes(old, _USERS)):
        try:
            os.setxattr(new, name, os.getxattr(old, name))
        except OSError as error:
            lost.append(f"{name} of {old.name} ({error.strerror})")
    return lost


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
    wanted = _attributes(old, _ACL)
    try:
        for name in wanted:
            os.setxattr(new, name, os.getxattr(old, name))
        for name in _attributes(new, _ACL) - wanted:  # inherited from the directory above
            os.removexattr(new, name)
    except OSError:
        return False
    return True


def _attributes(path: Path, kind: str) -> set[str]:
    try:
        return {name for name in os.listxattr(path) if name.startswith(kind)}
    except (OSError, AttributeError):  # the file system, or the system, has none
        return set()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _below(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder, topdown=False):
        for name in (*folders, *files):
            yield Path(place) / name
