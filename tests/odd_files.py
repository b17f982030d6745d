"""What may have the name of a file and is none, with what errors say of it."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

ODD_FILES = {
    "FIFO": "cannot be read: it is a FIFO, not a regular file",
    "socket": "cannot be read: it is a socket, not a regular file",
    "directory": "cannot be read: it is a directory, not a regular file",
    "link to nothing": "is a link to gone, which does not exist",
    "link to itself": "is a link to .*, which leads in a circle",
}


def put_odd_file(path: Path, kind: str) -> None:
    """Put one of `ODD_FILES` in place of a file."""
    path.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "socket":
        # An address may have 100 bytes, so it is bound at a short one.
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
            server.bind(f"{folder}/x")
            os.rename(f"{folder}/x", path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("gone" if kind == "link to nothing" else path.name)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Inside, this process may not read everything, as root may."""
    usual = os.geteuid()
    if not usual:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(usual)
