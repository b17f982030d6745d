"""The folder in which finished shards are kept beside the output, for one process at a time.

The plan in it says what the shards are of, and that the folder is ours: one that holds anything and
has no plan is somebody else's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from diy_core.data.files import DataError
from diy_core.data.shard_files import MORE_ROOM
from diy_core.errors import naming
from diy_core.system.disk import room_for
from diy_core.system.outside import is_there, read_bytes
from diy_core.system.places import forbids_changes, unchangeable
from diy_core.system.standard_error import complain

_PLAN = "plan.json"
_OWN = re.compile(r"\d{8}\.(npz|tmp)|plan\.(json|tmp)")
_KEYS = {"format", "shards", "sources"}  # of a plan
_LONGEST_PLAN = 1 << 30  # bytes; a source takes about 150


@contextlib.contextmanager
def parts_of(out: Path) -> Iterator[Path]:
    """The folder, locked; the system drops the lock when the process ends.

    Raises:
        DataError: another process holds it, it is not ours, or it may not be made.
    """
    folder = out.with_name(f".{out.name}.parts")
    descriptor = -1
    try:
        while descriptor < 0 or not _is_at(descriptor, folder):  # another process finished with it
            if descriptor >= 0:
                os.close(descriptor)
            descriptor = _opened(folder, out)
            _lock(descriptor, folder)
        _require_ours(folder)
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):  # what holds shards stays
                folder.rmdir()
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _opened(folder: Path, out: Path) -> int:
    while True:
        try:
            with naming(folder, out):
                folder.mkdir(0o700, exist_ok=True)  # what is private is private here too
        except OSError as error:
            if not forbids_changes(error):
                raise
            words = f"cannot be written: {unchangeable(out.parent, error)}"
            raise DataError(out, words) from error
        with contextlib.suppress(FileNotFoundError):
            return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _is_at(descriptor: int, folder: Path) -> bool:
    return folder.exists() and os.path.samestat(os.fstat(descriptor), folder.lstat())


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DataError(folder, "another process is preparing this data: wait for it") from None


def _require_ours(folder: Path) -> None:
    names = sorted(os.listdir(folder))
    if names and not _is_plan(folder / _PLAN) and not set(names) <= {"plan.tmp"}:
        raise DataError(
            folder,
            f"holds {names[0]}, and no plan of shards that were prepared here: the shards of this "
            "data would be kept there: rename it, or choose another place to write to",
        )


def _is_plan(file: Path) -> bool:
    try:
        values = json.loads(read_bytes(file, _LONGEST_PLAN))
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and values.keys() >= _KEYS


def begin_or_go_on(folder: Path, settings: str) -> None:
    """Keep the shards of a run with the same settings; those of any other are dropped."""
    file = folder / _PLAN
    if is_there(file) and read_bytes(file, _LONGEST_PLAN) == settings.encode():
        return
    _remove_shards(folder)
    content, temporary = settings.encode(), file.with_suffix(".tmp")
    with room_for(file, len(content), MORE_ROOM):
        temporary.write_bytes(content)
        temporary.replace(file)


def _remove_shards(folder: Path) -> None:
    for name in os.listdir(folder):
        if _OWN.fullmatch(name) and name != _PLAN:
            (folder / name).unlink()


def remove_parts(folder: Path) -> None:
    """Remove the folder, once what was made of it is whole; what others put there is kept."""
    try:
        _remove_shards(folder)
        others = sorted(set(os.listdir(folder)) - {_PLAN})
        (folder / _PLAN).unlink()
        if others:
            complain(f"{folder} is kept: it holds {others[0]}, which is not of this preparation")
        else:
            folder.rmdir()
    except OSError as error:
        complain(f"{folder} could not be removed: {error.strerror}")
