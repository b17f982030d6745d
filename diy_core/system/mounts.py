"""Mount points: what is mounted below a directory is not part of it.

Not even where both lie on the same disk, as after `mount --bind`. So it is neither emptied nor
crossed, and what holds it is not replaced.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from diy_core.errors import CheckpointError

_MOUNTS = Path("/proc/self/mountinfo")  # Linux; elsewhere the device number alone tells


def refuse_mounts(path: Path) -> None:
    """Raise where a mount point is in the way of replacing what is at `path`.

    Args:
        path: without links in it, but for the way to a held directory.

    Raises:
        CheckpointError: it is one, or one lies below it.
    """
    points = mounts_at_or_below(path)
    if Path(os.path.realpath(path)) in points:
        raise CheckpointError(
            path, "is a mount point, which cannot be replaced: give a name inside of it"
        )
    if points:
        raise CheckpointError(
            path,
            f"is not replaced: another file system is mounted below it, at {points[0]}: unmount "
            "that, or choose another place",
        )


def mounts_at_or_below(path: Path) -> list[Path]:
    """The mount points at a path, and below it."""
    path = Path(os.path.realpath(path))
    points = [point for point in mount_points() if point.is_relative_to(path)]
    return points or ([path] if path.exists() and os.path.ismount(path) else [])


def mount_points() -> list[Path]:
    """All that this process sees; none where the system does not tell."""
    try:
        lines = _MOUNTS.read_bytes().splitlines()
    except OSError:
        return []
    return [Path(os.fsdecode(_plain(line.split(b" ")[4]))) for line in lines]


def _plain(name: bytes) -> bytes:
    r"""A blank stands there as `\040`."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), name)


def mount_of(descriptor: int) -> tuple[int, int]:
    """What tells the mount on which an open file lies from others: two numbers."""
    number = 0
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", "rb") as lines:
            number = next(int(line.split()[1]) for line in lines if line.startswith(b"mnt_id:"))
    except (OSError, StopIteration):  # no Linux
        pass
    return os.fstat(descriptor).st_dev, number
