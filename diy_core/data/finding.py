"""Which files a name, a directory or a pattern stands for, and what is passed over, and why."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from diy_core.checkpoints.training_run import has_marks_of_run
from diy_core.data.about import texts_about_data
from diy_core.data.files import PARTS, DataError, are_prepared, is_own
from diy_core.data.forms import KINDS, form_of
from diy_core.data.found import (
    ABOUT,
    AGAIN,
    ARCHIVE,
    FOLDER,
    HIDDEN,
    LEFT_BEHIND,
    NO_FILE,
    OTHER_KIND,
    PREPARED,
    REVISION,
    RUN,
    Found,
    folded,
    shown,
)
from diy_core.data.patterns import matches
from diy_core.data.walking import Walk
from diy_core.errors import CheckpointError
from diy_core.system.outside import is_there, open_regular

BUILTIN = "builtin:pydoc"
SOURCES = "sources"  # where a fault is that no single file has
STANDARD_INPUT = "-"
_LONGEST_NAME = 255  # bytes
# macOS's resource forks; what Spark has not finished, and journals; Windows; disk stations. An
# editor's copies end in ~ or #.
_LEFT_BEHIND = {"__macosx", "_temporary", "_delta_log", "_spark_metadata", "__pycache__"}
_LEFT_BEHIND |= {"thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
_LEFT_BEHIND |= {"@eadir", "@recycle", "#recycle", "lost+found"}


def survey(sources: str | Path | Sequence[str | Path]) -> Found:
    """Look for the files behind names, patterns and directories.

    A name stands for that file, whatever it is called. A directory stands for the files below it
    whose ending is known, also behind links, but not for what is hidden; a pattern (`**` too) for
    the files that it matches.

    Raises:
        DataError: names, patterns or directories without files, links that lead nowhere, and what
            may not be read; all of them.
    """
    search = _Search()
    for source in [sources] if isinstance(sources, (str, Path)) else sources:
        search.add(str(source))
    if search.faults or not search.found.paths:
        raise DataError(SOURCES, search.faults or "none were given")
    return search.found


class _Search:
    def __init__(self) -> None:
        self.found = Found()
        self._walk = Walk(self.found)
        self.faults = self._walk.faults
        self._files: dict[object, str] = {}
        self._unread: list[str] = []  # below directories, of kinds that are not read

    def add(self, name: str) -> None:
        """One source."""
        if name == BUILTIN:
            self.found.paths += [name] if name not in self.found.paths else []
        elif os.path.isdir(name):
            self._add_directory(Path(name))
        elif os.path.lexists(name):
            self._add_named(Path(name))
        elif name == STANDARD_INPUT:
            self.faults.append(
                "standard input (-) is not read, as a text is read more than once: write it to a "
                "file, and name that"
            )
        else:
            self._add_matches(name)

    def _add_named(self, path: Path) -> None:
        mode = self._walk.mode(str(path))
        if mode is None:
            return
        if stat.S_ISREG(mode):
            self._add_file(path, named=True)
        else:
            self.faults.append(
                f"{shown(path)} is not a regular file, and is read more than once: write it to a "
                "file first"
            )

    def _add_matches(self, pattern: str) -> None:
        faults = len(self.faults)
        matched = [Path(match) for match in matches(pattern, self._walk)]
        files = [match for match in matched if not os.path.isdir(match)]
        prepared = list(filter(_is_prepared, files))
        for file in prepared:
            self.found.pass_over(file, PREPARED)
            files.remove(file)
        for folder in [] if "**" in pattern else filter(os.path.isdir, matched):
            self.found.pass_over(folder, FOLDER)
        if not files and len(self.faults) == faults:
            only = ": what it matches are folders, to be named themselves" if matched else ""
            only = f": what it matches is {PREPARED}" if prepared else only
            self.faults.append(f"no file at {shown(pattern)}{only}")
        for file in files:
            self._add_named(file)

    def _add_directory(self, top: Path) -> None:
        before = {why: len(names) for why, names in self.found.passed_over.items()}
        faults, is_new = len(self.faults), not self._walk.knows(str(top))
        files = self._below(top)
        about = texts_about_data(files, self._unread)
        for file in files:
            if file in about:
                self.found.pass_over(file, ABOUT)
        files = [file for file in files if file not in about]
        for file in files:
            self._add_file(file)
        if not files and is_new and len(self.faults) == faults:
            new = {why: n[before.get(why, 0) :] for why, n in self.found.passed_over.items()}
            there = [f"; {folded(names)}: {why}" for why, names in new.items() if names]
            listed = ", ".join(KINDS)
            self.faults.append(f"no file ending in {listed} at {shown(top)}{''.join(there)}")

    def _below(self, top: Path) -> list[Path]:
        """The files below a folder that may be read; what is not a file of data is passed over."""
        files, pending = [], self._in(top)[::-1]
        while pending:
            path = pending.pop()
            mode = self._mode_of_data(path)
            if mode is None:
                continue
            if stat.S_ISDIR(mode):
                pending += self._in(path)[::-1]
            else:
                files.append(path)
        return files

    def _in(self, folder: Path) -> list[Path]:
        names = self._walk.names(str(folder))
        if why := _made_here(folder, names):  # or the next run would learn what this one writes
            self.found.pass_over(folder, why)
            return []
        for revision in self._other_revisions(folder, names):
            self.found.pass_over(folder / revision, REVISION)
            names.remove(revision)
        return [folder / name for name in names]

    def _mode_of_data(self, path: Path) -> int | None:
        """Of a folder, or of a file that may be data; None: anything else, which is noted."""
        if why := _unwanted(path.name):
            self.found.pass_over(path, why)
            return None
        form = form_of(path)
        if form.ending and form.kind is None and os.path.islink(path) and not os.path.exists(path):
            self.found.pass_over(path, OTHER_KIND)  # as of pictures that were not fetched
            return None
        mode = self._walk.mode(str(path))
        if mode is None or stat.S_ISDIR(mode):
            return mode
        if stat.S_ISREG(mode) and form.kind not in (None, "archive"):
            return mode
        if stat.S_ISREG(mode):
            self._unread.append(str(path))
        other = ARCHIVE if form.kind else OTHER_KIND
        self.found.pass_over(path, other if stat.S_ISREG(mode) else NO_FILE)
        return None

    def _other_revisions(self, folder: Path, names: list[str]) -> list[str]:
        """Of the snapshots in a cache of the Hugging Face hub, all but the one that `main` is."""
        main = folder.parent / "refs" / "main"
        if folder.name != "snapshots":
            return []
        try:
            if not is_there(main):
                return []
            with open_regular(main) as file:
                current = file.read(_LONGEST_NAME).decode(errors="replace").strip()
        except CheckpointError as error:
            self.faults.append(str(error))
            return []
        return [name for name in names if name != current] if current in names else []

    def _add_file(self, path: Path, *, named: bool = False) -> None:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            self.faults.append(f"{shown(path)} has a name that is not UTF-8: rename it")
            return
        try:
            status = os.stat(path)
        except OSError as error:  # gone meanwhile
            self._walk.note(str(path), error)
            return
        linked = status.st_nlink > 1 and status.st_ino
        key = (status.st_dev, status.st_ino) if linked else os.path.realpath(path)
        name = path.as_posix()
        first = self._files.get(key)
        if first is None:
            first = self._files[key] = name
            self.found.paths.append(name)
        elif first != name:
            self.found.pass_over(path, AGAIN)
        if named:
            self.found.named.add(first)


def _is_prepared(file: Path) -> bool:
    """Whether a file is one of prepared data."""
    there = (name for name in PARTS if os.path.exists(file.parent / name))
    return is_own(file.name) and are_prepared(list(there))


def _made_here(folder: Path, names: Sequence[str]) -> str | None:
    """What a folder is that this project writes, and that holds no texts to learn."""
    if are_prepared(names):
        return PREPARED
    is_run = {"config.yaml", "checkpoints"} & set(names) and has_marks_of_run(folder)
    return RUN if is_run else None


def _unwanted(name: str) -> str | None:
    if name.startswith((".", "~$")):
        return HIDDEN
    left = name.lower() in _LEFT_BEHIND or name.endswith(("~", "#"))
    return LEFT_BEHIND if left else None
