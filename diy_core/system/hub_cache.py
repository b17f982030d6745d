"""A cache of the Hugging Face hub, and where in it the models are.

hub/models--ORG--NAME/snapshots/REVISION    a model, in links to what lies in blobs/
hub/models--ORG--NAME/refs/main             the revision that `main` is
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from diy_core.errors import CheckpointError
from diy_core.system.outside import open_regular

_LONGEST = 256  # bytes of the name of a revision
_MOST, _SHOWN = 100, 3  # repositories that are looked into, and named


def revisions(repository: Path) -> list[Path]:
    """The snapshots in `models--ORG--NAME`, or in its `snapshots`, that of `main` first."""
    folder = repository if repository.name == "snapshots" else repository / "snapshots"
    found = _folders(folder) if folder.is_dir() else []
    main = _main(folder.parent)
    return sorted(found, key=lambda item: (item.name != main, item.name))


def snapshots_below(path: Path) -> list[Path]:
    """The models in a cache or a repository of one, a snapshot for each; none in anything else.

    Args:
        path: a directory: the cache, what holds it as `hub`, a repository, or its `snapshots`.
    """
    if not path.is_dir():
        return []
    if path.name == "snapshots" or (path / "snapshots").is_dir():
        return revisions(path)
    for cache in (path, path / "hub"):
        models = [item for item in _folders(cache) if item.name.startswith("models--")]
        if found := [snapshots[0] for one in models[:_MOST] if (snapshots := revisions(one))]:
            return found
    return []


def hint(path: Path) -> str:
    """What to give instead of a directory of the cache; empty for anything else."""
    found = [str(snapshot) for snapshot in snapshots_below(path)]
    if not found:
        return ""
    more = f", and {len(found) - _SHOWN} more" if found[_SHOWN:] else ""
    which = "that" if not found[1:] else "one of them"
    return (
        "; it belongs to a cache of the Hugging Face hub, whose models lie below, as "
        f"{', '.join(found[:_SHOWN])}{more}: give {which}"
    )


def _folders(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):  # not there, or not ours to read
        return sorted(item for item in path.iterdir() if item.is_dir())
    return []


def _main(repository: Path) -> str | None:
    with (
        contextlib.suppress(CheckpointError, OSError),  # no snapshot of it is the first then
        open_regular(repository / "refs" / "main") as file,
    ):
        return file.read(_LONGEST).decode(errors="replace").strip()
    return None
