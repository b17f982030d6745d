"""Texts that are about data, and not of them: README.md, LICENSE.txt, requirements.txt."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from diy_core.data.forms import form_of

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


def texts_about_data(files: Sequence[Path], others: Iterable[str]) -> set[Path]:
    """Of files, the texts about data.

    They are those above files of records, and above texts with another ending; a licence and its
    like wherever there is anything else.

    Args:
        files: below a folder.
        others: names of files there that are not read, which may be the data.
    """
    records = [file for file in files if form_of(file).kind != "text"] + [Path(o) for o in others]
    texts = [file for file in files if form_of(file).kind == "text" and not _is_about(file)]
    above: set[Path] = set()
    for file in records:
        _add_folders(above, file)
    folders: defaultdict[str, set[Path]] = defaultdict(set)  # above texts of each ending
    for file in texts:
        _add_folders(folders[form_of(file).ending], file)
    found = set()
    for file in filter(_is_about, files):
        here = {ending for ending, those in folders.items() if file.parent in those}
        beside = bool(here) and form_of(file).ending not in here
        among = not _may_be_data(file) and (records or texts)
        if file.parent in above or beside or among:
            found.add(file)
    return found


def _add_folders(known: set[Path], file: Path) -> None:
    """Add all folders above a file; above one that is known all are."""
    for folder in file.parents:
        if folder in known:
            break
        known.add(folder)


def _is_about(file: Path) -> bool:
    return form_of(file).kind == "text" and (_begins(file, _ABOUT) or not _may_be_data(file))


def _may_be_data(file: Path) -> bool:
    """False for a text that is not a document of any collection, by its name."""
    return not (_begins(file, _LEGAL) or " ".join(_words(file)) in _LISTS)


def _begins(file: Path, names: Sequence[str]) -> bool:
    words = _words(file)
    return any(words[: len(name)] == name for name in map(str.split, names))


def _words(file: Path) -> list[str]:
    stem = file.name.lower().removesuffix(form_of(file).ending)
    return [word for word in re.split(r"[\W_]+", stem) if word]
