"""Patterns of names, as a shell and Python's `glob` have them, over folders that may be anything.

`glob` follows links in circles until a path is too long, which two of them put off for years, and
takes a folder that may not be read for one without files. This goes the same ways with a `Walk`.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections.abc import Hashable

from diy_core.data.forms import form_of
from diy_core.data.found import NOWHERE
from diy_core.data.walking import Walk

_ANY = "**"  # any number of folders


def matches(pattern: str, walk: Walk) -> list[str]:
    """The names that a pattern stands for, sorted; what is in a folder, by one of its names alone.

    Args:
        pattern: with `*`, `?`, `[...]`, and `**` for any folders; what is hidden only where it says
            so.
        walk: notes what may not be read.
    """
    matched: set[str] = set()
    parts = _parts(pattern)
    pending = [("/" if pattern.startswith("/") else "", 0)]
    while pending:
        folder, at = pending.pop()
        is_any, is_last = parts[at] == _ANY, at + 1 == len(parts)
        folders = []
        for path in _in(folder, parts[at], walk, (pattern, at)):
            if is_last:
                matched.add(path)
            if (is_any or not is_last) and _is_folder(path, walk, is_match=is_last):
                folders.append((path, at if is_any else at + 1))
        pending += folders[::-1]
        if is_any and not is_last:
            pending.append((folder, at + 1))  # next: a file bears the first of its names
        elif is_any and folder:
            matched.add(folder)
    return sorted(matched)


def _parts(pattern: str) -> list[str]:
    """What stands between slashes; an empty one at the end of a pattern that wants folders."""
    parts: list[str] = []
    for part in pattern.split("/"):
        if part and not (part == _ANY and parts[-1:] == [_ANY]):  # twice says no more than once
            parts.append(part)
    return [*parts, ""] if pattern.endswith("/") or not parts else parts


def _in(folder: str, part: str, walk: Walk, purpose: Hashable) -> list[str]:
    """The paths in a folder that one part of a pattern matches."""
    if not (part == _ANY or glob.has_magic(part)):
        path = os.path.join(folder, part)
        return [path] if _has_name(path, walk) else []
    names = walk.names(folder or os.curdir, purpose)
    if not part.startswith("."):
        names = [name for name in names if not name.startswith(".")]
    return [os.path.join(folder, name) for name in fnmatch.filter(names, part)]


def _has_name(path: str, walk: Walk) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero in the name
        return False
    except OSError as error:
        walk.note(path, error)
        return False
    return True


def _is_folder(path: str, walk: Walk, *, is_match: bool) -> bool:
    """Whether files may be below a path; why not, is said of a match by whoever reads it."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as error:
        if is_match:
            return False
        if os.path.islink(path) and form_of(path).ending:  # a link to a file, by its name
            walk.pass_over(path, NOWHERE)
        else:
            walk.note(path, error)
        return False
