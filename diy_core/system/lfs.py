"""Pointers of Git LFS and git-annex: a few lines of text where a large file was meant."""

from __future__ import annotations

import re
from pathlib import Path

from diy_core.errors import CheckpointError
from diy_core.system.outside import open_regular

_HEAD = b"version https://git-lfs.github.com/spec/"
_LONGEST = 1024  # bytes; the specification's own limit
_ANNEX = re.compile(
    rb"(?:[./]*\.git)?/annex/objects/\S+\s*$"
)  # of a file that is not locked, or a link


def refuse_lfs_pointer(path: Path) -> None:
    """Raise where a file is such a pointer; what cannot be read is left to who reads it.

    Raises:
        CheckpointError: it is one; the message says how to get the file itself.
    """
    try:
        with open_regular(path) as stream:
            text = stream.read(_LONGEST)
    except (CheckpointError, OSError):
        return
    if _ANNEX.match(text):
        raise CheckpointError(
            path,
            "is a pointer of git-annex and not the file itself: run `git annex get` where it was "
            "cloned, or download it",
        )
    if not text.startswith(_HEAD):
        return
    size = re.search(rb"^size (\d{1,15})$", text, re.MULTILINE)
    of = f" of {int(size[1]):,} bytes" if size else ""
    raise CheckpointError(
        path,
        f"is a Git LFS pointer to a file{of} and not the file itself: run `git lfs pull` where it "
        "was cloned, or download it",
    )
