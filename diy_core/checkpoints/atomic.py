"""Writing a directory or a file whole or not at all.

Everything is written to a hidden sibling, synced to the disk, and moved into place at the end: a
new one by a rename, an old one by exchanging the two names in one step. A process that is killed
leaves the old or the new, never half of one and never nothing; what it left beside them is removed
by the next write to the same place. A writer that lives holds a lock on its hidden sibling, which
the system drops when the process ends, so nobody takes it for remains.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from diy_core.errors import CheckpointError, naming

_LONGEST_NAME = 255  # bytes, on the common file systems
_SYNC_FILE_RANGE_WRITE = 2
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2  # Linux, <fcntl.h> and <linux/fs.h>


@contextlib.contextmanager
def atomic_directory(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary directory to write into; it becomes `path` when the block ends without an error.

    Args:
        path: an existing directory there is replaced.
        overwrite: False refuses to replace one, also one that appears in the meantime.

    Raises:
        CheckpointError: `path` is a file, is not to be replaced, or its parent does not exist.
    """
    given, path = Path(path), _target(path)
    if path.exists() and not path.is_dir():
        raise CheckpointError(path, "exists and is not a directory: choose another place")
    if path.exists() and not overwrite:
        raise _in_the_way(path)
    temporary = _temporary_name(path)
    with naming(temporary, given):
        temporary.mkdir()
    try:
        with naming(temporary, given), _naming(path), _lock(temporary):
            yield temporary
            _sync_tree(temporary)
            _move_in(temporary, path, overwrite)
    finally:
        _remove(temporary)
        recover(path)  # a failure between two moves left the old directory aside


@contextlib.contextmanager
def atomic_file(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """The same for one file: an empty temporary file to write, which becomes `path`.

    Raises:
        CheckpointError: `path` is a directory, is not to be replaced, or its parent does not exist.
    """
    given, path = Path(path), _target(path)
    if path.is_dir():
        raise CheckpointError(path, "is a directory, and a file is to be written: give its name")
    if path.exists() and not overwrite:
        raise _in_the_way(path)
    temporary = _temporary_name(path)
    with naming(temporary, given):
        temporary.touch(exist_ok=False)
    try:
        with naming(temporary, given), _naming(path), _lock(temporary):
            yield temporary
            _sync(temporary)
            _move_in(temporary, path, overwrite)
    finally:
        _remove(temporary)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error that names no file, as that of a full disk, says what was being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def _target(path: str | Path) -> Path:
    path = Path(os.path.realpath(path))  # through a link, as opening a file for writing does
    if path.parent.exists() and not path.parent.is_dir():
        raise CheckpointError(path, f"lies in {path.parent}, which is a file: choose another place")
    if not path.parent.is_dir():
        raise CheckpointError(path, f"the parent directory {path.parent} does not exist")
    recover(path)
    return path


def _in_the_way(path: Path) -> CheckpointError:
    return CheckpointError(path, "exists already: overwrite=True replaces it")


def _temporary_name(path: Path) -> Path:
    return path.with_name(f"{_hidden_name(path)}.tmp-{uuid.uuid4().hex[:8]}")


def _hidden_name(path: Path) -> str:
    """How the names of hidden siblings begin; of a name that leaves no room for more, its hash."""
    name = os.fsencode(path.name)
    long = len(name) + len(".") + len(".tmp-01234567") > _LONGEST_NAME
    return f".{hashlib.sha256(name).hexdigest() if long else path.name}"


def recover(path: str | Path) -> None:
    """Undo what a killed write left beside `path`: restore the old directory, drop the remains."""
    path = Path(os.path.realpath(path))
    pattern = re.compile(re.escape(f"{_hidden_name(path)}.tmp-") + "[0-9a-f]{8}")
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    remains = [sibling for sibling in siblings if pattern.fullmatch(sibling.name)]
    dead = [sibling for sibling in remains if not _is_locked(sibling)]
    for sibling in dead:
        _remove(sibling)
    if len(dead) < len(remains):
        return  # another process is writing here, and may be between its two moves
    old = _aside(path)
    if old.is_dir() and not path.exists():
        with naming(old, path):
            old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Hold a lock on a directory; on a file system without locks, nothing."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _is_locked(directory: Path) -> bool:
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return False  # gone by now
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


def _move_in(new: Path, path: Path, overwrite: bool) -> None:
    """Give `new` the name `path`; what had it before is then under the name of `new`, or gone."""
    if not overwrite:
        try:
            done = _rename(new, path, _RENAME_NOREPLACE)
        except FileExistsError:
            raise _in_the_way(path) from None
        if not done:
            if path.exists():
                raise _in_the_way(path)
            new.rename(path)
    elif not path.exists():
        new.rename(path)
    elif path.is_file():
        new.replace(path)
    elif not _rename(new, path, _RENAME_EXCHANGE):
        # In two moves: should the process be killed between them, `recover` moves the old one back.
        path.rename(_aside(path))
        new.rename(path)
    _sync(path.parent)
    shutil.rmtree(_aside(path), ignore_errors=True)


def _rename(old: Path, new: Path, how: int) -> bool:
    """`renameat2(2)`; False where the system or the file system does not have it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None or not sys.platform.startswith("linux"):
        return False
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), ctypes.c_uint(how)) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL):
        return False
    raise OSError(code, os.strerror(code), str(old), None, str(new))


def start_writing_back(descriptor: int) -> None:
    """Ask the system to begin with the disk, so that less is left to wait for at the end."""
    call = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if call is not None:
        zero = ctypes.c_int64(0)  # from the first byte to the end of the file
        call(descriptor, zero, zero, ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def _aside(path: Path) -> Path:
    return path.with_name(f"{_hidden_name(path)}.old")


def _sync_tree(root: Path) -> None:
    """Ask the disk to hold every file and directory below root before anything is renamed."""
    for folder, _, names in os.walk(root):
        for file in (Path(folder) / name for name in names):
            if file.is_file() and not file.is_symlink():
                _sync(file)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
