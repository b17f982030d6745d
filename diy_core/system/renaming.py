"""Names that change in one step, and what has to be on the disk before they do."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
from pathlib import Path

_SYNC_FILE_RANGE_WRITE = 2
_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2  # Linux, <fcntl.h> and <linux/fs.h>


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names; False where the system or the file system cannot do that."""
    return _rename(one, other, _RENAME_EXCHANGE)


def rename_new(old: Path, new: Path) -> None:
    """Give a file or a directory a name that nothing has.

    Raises:
        FileExistsError: something has it.
    """
    if _rename(old, new, _RENAME_NOREPLACE):
        return
    if os.path.lexists(new):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
    old.rename(new)


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


def sync_tree(root: Path) -> None:
    """Ask the disk to hold a file, or every file and directory below a directory."""
    if root.is_file() and not root.is_symlink():
        sync(root)
    for folder, _, names in os.walk(root):
        for file in (Path(folder) / name for name in names):
            if file.is_file() and not file.is_symlink():
                sync(file)
        sync(Path(folder))


def sync(path: Path) -> None:
    """Ask the disk to hold a file, or the names in a directory.

    A directory that may be written and not read cannot be asked for; nor can some file systems.
    """
    is_folder = path.is_dir()
    with contextlib.ExitStack() as stack:
        if is_folder:
            stack.enter_context(contextlib.suppress(PermissionError, IsADirectoryError))
        descriptor = os.open(path, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if not (is_folder and error.errno == errno.EINVAL):
                raise
