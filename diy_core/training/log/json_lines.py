"""The logs of a run: a JSON object with a `step` on each line, in the order of the steps.

A line that cannot be read costs itself and no other one. It is moved into a file of its own beside
the log (`metrics.jsonl.damaged`), and the run says so.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from diy_core.checkpoints.atomic import atomic_file
from diy_core.errors import CheckpointError
from diy_core.system.disk import DiskFull, naming_full_disks
from diy_core.system.outside import is_there, open_own, open_regular, refuse_link

LONGEST = 1 << 20  # bytes of a line; one of ours has some 200
_MOST = 1 << 63
_SHOWN = 5
_NONE = -1  # the step of a line that has none
_OWN = "a run adds to and cuts a file of its own: put a copy in its place, or remove it"


def is_count(value: Any) -> bool:
    """A number of steps or tokens that a run may come to."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _is_measure(value: Any) -> bool:
    """What was computed; null where it was not finite."""
    if value is None:
        return True
    return _is_number(value) and math.isfinite(value)


def _is_number(value: Any) -> bool:
    """A number, also one that is not finite, that a float can be."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    with contextlib.suppress(OverflowError):
        float(value)
        return True
    return False


_FORMS: Mapping[str, Callable[[Any], bool]] = {
    "step": is_count,
    "tokens": is_count,
    "total_tokens": is_count,
    "skipped": lambda value: isinstance(value, bool),
    **dict.fromkeys(("loss", "grad_norm", "perplexity", "learning_rate"), _is_measure),
}
# What is read of a log, by its name.
_NEEDED = {"metrics.jsonl": {"step", "loss", "skipped"}, "evaluations.jsonl": {"step", "loss"}}


def parse_line(line: bytes, log: str, *, foreign: bool = False) -> dict[str, Any] | None:
    """A whole line of a log, or None for one that is damaged or of another form.

    Args:
        line: with its end.
        log: the name of the file.
        foreign: others may have written it: what is not known may be null, and a number NaN.
    """
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    needed = {"step"} if foreign else _NEEDED.get(log, {"step"})
    if not isinstance(row, dict) or not needed <= row.keys() or row["step"] is None:
        return None
    return row if all(_fits(name, value, foreign) for name, value in row.items()) else None


def _fits(name: str, value: Any, foreign: bool) -> bool:
    form = _FORMS.get(name, lambda value: True)
    if foreign and value is None:
        return True
    return _is_number(value) if foreign and form is _is_measure else form(value)


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a log, with their ends; none where there is no file.

    Raises:
        CheckpointError: it cannot be read, or a line is longer than any of ours.
    """
    if not is_there(path):
        return
    number = 0
    with open_regular(path) as file:
        while line := file.readline(LONGEST + 1):
            number += 1
            if len(line) > LONGEST:
                raise CheckpointError(
                    path,
                    f"is damaged: line {number} is longer than {LONGEST} bytes. Move the file away",
                )
            yield line


def refuse_own_link(path: Path) -> None:
    """Raise where a log is a symbolic link: what a run adds and cuts off would be elsewhere."""
    refuse_link(path, _OWN)


def logged_steps(path: Path) -> set[int]:
    """The steps of which a log has a line; none where there is no file."""
    rows = (parse_line(line, path.name) for line in read_lines(path))
    return {row["step"] for row in rows if row is not None}


class JsonLines:
    """A log that grows. Lines of steps that will be taken again are cut off when it is opened.

    Args:
        path: made if it does not exist.
        last_step: lines of later steps are dropped, as is a last one that was not finished.
        say: is told which lines were damaged.

    Attributes:
        kept: the lines that are left.

    Raises:
        CheckpointError: the file cannot be read, or is a link to one.
        DiskFull: there is no room to set damaged lines aside.
    """

    def __init__(
        self, path: Path, last_step: int, say: Callable[[str], None] = lambda text: None
    ) -> None:
        refuse_own_link(path)
        self._path, self._waiting = path, b""
        rows, size, whole = [], 0, True
        for line in read_lines(path):
            whole = line.endswith(b"\n")
            rows.append(parse_line(line if whole else line + b"\n", path.name))
            size += len(line) if rows[-1] is not None and rows[-1]["step"] <= last_step else 0
        steps = [_NONE if row is None else int(row["step"]) for row in rows]
        if not whole and steps[-1] == _NONE and _is_later(line, last_step):
            steps[-1] = last_step + 1  # what a kill left of a step that is taken again
        damaged = set(range(len(rows))) - _rising(steps)
        keep = [i for i, step in enumerate(steps) if i not in damaged and step <= last_step]
        self.kept: list[dict[str, Any]] = [row for i in keep if (row := rows[i]) is not None]
        if damaged:
            _set_aside(path, damaged, set(keep))
            say(_damaged_line(path, sorted(damaged)))
        self._file = open_own(path, _OWN)
        self._leave_other_names()
        if not damaged:
            self._file.truncate(size)
            if keep and not whole and keep[-1] == len(rows) - 1:
                self._waiting = b"\n"

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a line, which survives the end of the process, however that comes.

        While the disk is full, lines wait in memory.
        """
        self._waiting += json.dumps(row, allow_nan=False).encode() + b"\n"
        with contextlib.suppress(DiskFull):
            self._put()

    def sync(self) -> None:
        """Return when the disk holds all lines.

        Raises:
            DiskFull: it has no room for them.
        """
        self._put()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _leave_other_names(self) -> None:
        """Go on in a copy where the file has another name, as one by `cp -al`: that is a backup."""
        if os.fstat(self._file.fileno()).st_nlink < 2:
            return
        with (
            open_regular(self._path) as old,
            atomic_file(self._path) as new,
            new.open("wb") as file,
        ):
            shutil.copyfileobj(old, file)
        self._file.close()
        self._file = open_own(self._path, _OWN)

    def _put(self) -> None:
        with naming_full_disks(self._path):
            self._leave_other_names()
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]


def aside(path: Path) -> Path:
    """Where the damaged lines of a log are."""
    return path.with_name(f"{path.name}.damaged")


def _is_later(line: bytes, last_step: int) -> bool:
    """Whether the beginning of a line is that of a later step, or too short to say of which."""
    start = b'{"step": '
    if start.startswith(line[: len(start)]) and len(line) <= len(start):
        return True
    found = re.match(rb'\{"step": (\d{1,18}),', line)
    return found is not None and int(found[1]) > last_step


def _rising(steps: Sequence[int]) -> set[int]:
    """The indices of the longest sequence of steps that rise; `_NONE` has no place in it."""
    ends: list[int] = []  # of the sequences of each length, the one that ends lowest
    before: dict[int, int | None] = {}
    for i, step in enumerate(steps):
        if step == _NONE:
            continue
        at = bisect.bisect_left(ends, step, key=lambda end: steps[end])
        before[i] = ends[at - 1] if at else None
        ends[at : at + 1] = [i]
    found: set[int] = set()
    last = ends[-1] if ends else None
    while last is not None:
        found.add(last)
        last = before[last]
    return found


def _set_aside(path: Path, damaged: Collection[int], keep: Collection[int]) -> None:
    """Move lines into the file beside; both files are replaced whole, that one first."""
    with atomic_file(aside(path)) as new, new.open("wb") as file:
        if is_there(aside(path)):
            with open_regular(aside(path)) as old:
                shutil.copyfileobj(old, file)
        _copy_lines(path, damaged, file)
    with atomic_file(path) as new, new.open("wb") as file:
        _copy_lines(path, keep, file)


def _copy_lines(path: Path, wanted: Collection[int], to: BinaryIO) -> None:
    for i, line in enumerate(read_lines(path)):
        if i in wanted:
            to.write(line if line.endswith(b"\n") else line + b"\n")


def _damaged_line(path: Path, damaged: Sequence[int]) -> str:
    numbers = ", ".join(str(i + 1) for i in damaged[:_SHOWN])
    if len(damaged) == 1:
        what = f"line {numbers} is damaged and was"
    else:
        more = f" and {len(damaged) - _SHOWN} more" if damaged[_SHOWN:] else ""
        what = f"lines {numbers}{more} are damaged and were"
    return f"{path}: {what} moved to {aside(path)}; all others are kept"
