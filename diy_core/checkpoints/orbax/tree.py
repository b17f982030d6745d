"""The files of an Orbax tree, looked at before Orbax opens them: regular, and not too large.

tensorstore ends the process where it has no memory for a file. It reads each as a whole, but for
those in folders `d`, of which it reads parts.
"""

from __future__ import annotations

import os
from pathlib import Path

from diy_core.errors import CheckpointError
from diy_core.system.limits import how_to_raise
from diy_core.system.limits import limit as limit_of
from diy_core.system.outside import is_there, open_regular, require_tree
from diy_core.system.sources import Identity

_TREE = ("_METADATA", "manifest.ocdbt")
# Files that say what the others are.
_DESCRIBING = {*_TREE, "_CHECKPOINT_METADATA", "_sharding", ".zarray", ".zattrs", "zarr.json"}
_IN_PARTS = "d"


def require_regular_tree(tree: Path) -> list[Path]:
    """Look at, and record, the files of arrays.

    Returns:
        The files.

    Raises:
        CheckpointError: something else than a regular file, one that cannot be read, or one that is
            too large to be what its name says.
    """
    files = require_tree(tree)
    for file in files:
        if file.parent.name != _IN_PARTS:
            require_size(file)
    for name in _TREE:
        is_there(tree / name)  # raises for a directory
    return files


def require_size(file: Path) -> None:
    """Raise for a file that Orbax would read, and that is too large to be what its name says.

    Raises:
        CheckpointError: it is, or it cannot be opened.
    """
    with open_regular(file) as stream:
        size = Identity.of(stream).size
    if file.name in _DESCRIBING:
        if size > (most := limit_of("header_bytes")):
            raise CheckpointError(
                file, f"is longer than {most} bytes: {how_to_raise('header_bytes')}"
            )
    elif size > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise CheckpointError(
            file, f"has {size} bytes, and this machine {memory} of memory: it is read as a whole"
        )
