"""Which files a name, a directory or a pattern stands for, and what is passed over, and why."""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diy_core.data.files import DataError
from diy_core.data.forms import KINDS, form_of
from diy_core.system.outside import open_regular

BUILTIN = "builtin:pydoc"
SOURCES = "sources"  # where a fault is that no single file has
STANDARD_INPUT = "-"
_LONGEST_NAME = 255  # bytes
# Why something below a directory is not read.
HIDDEN = "hidden"
LEFT_BEHIND = "left behind by other programs"
ARCHIVE = "archives, to be unpacked first"
OTHER_KIND = "of a kind that is not read"
ABOUT = "about the data"
EMPTY = "empty"
NO_FILE = "neither files nor folders"
AGAIN = "the same under another name"
FOLDER = "folders that a pattern matched"
REVISION = "another revision in a cache of a hub"
# macOS's resource forks; what Spark has not finished, and journals; Windows; disk stations. An
# editor's copies end in ~ or #.
_LEFT_BEHIND = {"__macosx", "_temporary", "_delta_log", "_spark_metadata", "__pycache__"}
_LEFT_BEHIND |= {"thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
_LEFT_BEHIND |= {"@eadir", "@recycle", "#recycle", "lost+found"}
# By the words that a name begins with: README_zh.md. In a collection of texts these may be of it.
_ABOUT = [
    *("readme", "copyright", "notice", "authors", "changelog", "citation", "contributing"),
    *("code of conduct", "security", "attribution", "dataset card", "datacard", "data card"),
]
# These are of no collection: LICENSE-APACHE.txt, requirements-dev.txt.
_LEGAL = ["license", "licence", "copying", "eula", "requirements", "checksums", "sha256sums"]
_LEGAL += ["md5sums", "robots"]
# And these by the whole name, as terms and urls may be what a text is about.
_LISTS = {"merges", "vocab", "vocabulary", "urls", "terms", "terms of use", "terms of service"}
_LISTS |= {"terms and conditions", "constraints", "manifest", "filelist", "file list"}


@dataclass
class Found:
    """The files of sources.

    Attributes:
        paths: to be read, as they were given, each file once, in a fixed order.
        named: those of `paths` that were given by their own name.
        passed_over: names of files and folders by the reason, in the order in which they were met.
    """

    paths: list[str] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    passed_over: dict[str, list[str]] = field(default_factory=dict)

    def pass_over(self, path: str | Path, why: str) -> None:
        """Note something that is not read."""
        name = _shown(path) + "/" * os.path.isdir(path)
        self.passed_over.setdefault(why, []).append(name)


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
        self.faults: list[str] = []
        self._files: dict[object, str] = {}
        self._folders: set[str] = set()

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
        if self._mode(path) is None:
            return
        if path.is_file():
            self._add_file(path, named=True)
        else:
            self.faults.append(
                f"{path} is no regular file, and is read more than once: write it to a file first"
            )

    def _add_matches(self, pattern: str) -> None:
        matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
        files = [match for match in matches if not match.is_dir()]
        for folder in [] if "**" in pattern else filter(Path.is_dir, matches):
            self.found.pass_over(folder, FOLDER)
        if not files:
            only = ": what it matches are folders, to be named themselves" if matches else ""
            self.faults.append(f"no file at {pattern}{only}")
        for file in files:
            self._add_named(file)

    def _add_directory(self, top: Path) -> None:
        before = {why: len(names) for why, names in self.found.passed_over.items()}
        faults, is_new = len(self.faults), os.path.realpath(top) not in self._folders
        files = self._without_descriptions(self._below(top))
        for file in files:
            self._add_file(file)
        if not files and is_new and len(self.faults) == faults:
            new = {why: n[before.get(why, 0) :] for why, n in self.found.passed_over.items()}
            there = [f"; {folded(names)}: {why}" for why, names in new.items() if names]
            self.faults.append(f"no file ending in {', '.join(KINDS)} at {top}{''.join(there)}")

    def _below(self, folder: Path) -> list[Path]:
        """The files below a folder that may be read; what is not a file of data is passed over."""
        real = os.path.realpath(folder)
        if real in self._folders:  # also a link that leads back to a folder above it
            self.found.pass_over(folder, AGAIN)
            return []
        self._folders.add(real)
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            self.faults.append(f"{folder} cannot be read: {error.strerror}")
            return []
        for revision in _other_revisions(folder, names):
            self.found.pass_over(folder / revision, REVISION)
            names.remove(revision)
        return [file for name in names for file in self._entry(folder / name)]

    def _entry(self, path: Path) -> list[Path]:
        if why := _unwanted(path.name):
            self.found.pass_over(path, why)
            return []
        ending = form_of(path).ending
        if ending and form_of(path).kind is None and path.is_symlink() and not path.exists():
            self.found.pass_over(path, OTHER_KIND)  # as of pictures that were not fetched
            return []
        mode = self._mode(path)
        if mode is None:
            return []
        if stat.S_ISDIR(mode):
            return self._below(path)
        kind = form_of(path).kind
        if stat.S_ISREG(mode) and kind not in (None, "archive"):
            return [path]
        other = ARCHIVE if kind else OTHER_KIND
        self.found.pass_over(path, other if stat.S_ISREG(mode) else NO_FILE)
        return []

    def _mode(self, path: Path) -> int | None:
        """Of what a name leads to; None: that is a fault, which was noted."""
        try:
            return path.stat().st_mode
        except OSError as error:
            if path.is_symlink():
                leads = f"is a link to {os.readlink(path)}, which cannot be reached"
                self.faults.append(f"{path} {leads} ({error.strerror}): mend or remove the link")
            else:
                self.faults.append(f"{path} cannot be read: {error.strerror}")
            return None

    def _without_descriptions(self, files: list[Path]) -> list[Path]:
        """Files without the texts about data, such as README.md.

        They are those above files of records, and above texts with another ending; a licence and
        its like wherever there is anything else.
        """
        records = {file for file in files if form_of(file).kind != "text"}
        records |= {
            Path(name)
            for why in (ARCHIVE, OTHER_KIND)
            for name in self.found.passed_over.get(why, ())
        }
        above = {folder for file in records for folder in file.parents}
        texts = [file for file in files if form_of(file).kind == "text" and not _is_about(file)]
        endings = {(folder, form_of(file).ending) for file in texts for folder in file.parents}
        kept = []
        for file in files:
            here = {ending for folder, ending in endings if folder == file.parent}
            beside = bool(here) and form_of(file).ending not in here
            among = not _may_be_data(file) and (records or texts)
            if _is_about(file) and (file.parent in above or beside or among):
                self.found.pass_over(file, ABOUT)
            else:
                kept.append(file)
        return kept

    def _add_file(self, path: Path, *, named: bool = False) -> None:
        if (shown := _shown(path)) != str(path):
            self.faults.append(f"{shown} has a name that is not UTF-8: rename it")
            return
        status = path.stat()
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


def _is_about(file: Path) -> bool:
    return form_of(file).kind == "text" and (_begins(file, _ABOUT) or not _may_be_data(file))


def _may_be_data(file: Path) -> bool:
    """False for a text that is no document of any collection, by its name."""
    return not (_begins(file, _LEGAL) or " ".join(_words(file)) in _LISTS)


def _begins(file: Path, names: Sequence[str]) -> bool:
    words = _words(file)
    return any(words[: len(name)] == name for name in map(str.split, names))


def _words(file: Path) -> list[str]:
    stem = file.name.lower().removesuffix(form_of(file).ending)
    return [word for word in re.split(r"[\W_]+", stem) if word]


def _other_revisions(folder: Path, names: list[str]) -> list[str]:
    """Of the snapshots in a cache of the Hugging Face hub, all but the one that `main` is."""
    main = folder.parent / "refs" / "main"
    if folder.name != "snapshots" or not main.is_file():
        return []
    with open_regular(main) as file:
        current = file.read(_LONGEST_NAME).decode(errors="replace").strip()
    return [name for name in names if name != current] if current in names else []


def _unwanted(name: str) -> str | None:
    if name.startswith((".", "~$")):
        return HIDDEN
    left = name.lower() in _LEFT_BEHIND or name.endswith(("~", "#"))
    return LEFT_BEHIND if left else None


def _shown(path: str | Path) -> str:
    """A name as it can be printed and kept, in UTF-8; names of files may be any bytes."""
    return Path(path).as_posix().encode(errors="backslashreplace").decode()


def folded(names: Sequence[str], most: int = 3, of: int | None = None) -> str:
    """Names in a line: the first of them, and how many more there are.

    Args:
        names: all of them, or the first.
        most: that are written out.
        of: how many there are; None: `names` has all.
    """
    shown = names[:most]
    left = (len(names) if of is None else of) - len(shown)
    return ", ".join(shown) + (f" and {left:,} more" if left else "")
