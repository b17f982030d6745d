"""A full disk is told apart from every other error of the system."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diy_core.system.disk import DiskFull, described, naming_full_disks, require_room, room_for


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_has_a_name_of_its_own(tmp_path: Path, code: int) -> None:
    with pytest.raises(DiskFull) as caught, naming_full_disks(tmp_path):
        raise OSError(code, os.strerror(code))
    assert (caught.value.errno, caught.value.filename) == (code, str(tmp_path))
    assert "free some, or choose another directory" in described(caught.value)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EIO])
def test_another_error_stays_what_it_is(tmp_path: Path, code: int) -> None:
    error = OSError(code, os.strerror(code), "a file")
    for context in (naming_full_disks(tmp_path), room_for(tmp_path / "new", 1, "Free some.")):
        with pytest.raises(OSError, match="a file") as caught, context:
            raise error
        assert caught.value is error
    words = described(error)
    assert words.startswith("a file: ")
    assert "Errno" not in words


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda folder: (folder / "gone").read_text(), "gone: does not exist"),
        (lambda folder: folder.read_text(), "is a directory, and a file is needed: give another"),
        (
            lambda folder: (folder / "file" / "x").mkdir(),
            "x: is not a directory, or lies in a file",
        ),
        (lambda folder: (folder / "file").mkdir(), "file: exists already: give another path"),
    ],
)
def test_an_error_of_the_system_is_said_without_its_number(
    tmp_path: Path, call: Callable[[Path], object], words: str
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as caught:
        call(tmp_path)
    assert described(caught.value).startswith(str(tmp_path))
    assert words in described(caught.value)


def test_an_error_without_a_file_or_a_number_stays_what_it_is() -> None:
    for error in (OSError("no stream"), OSError(errno.EIO, "broken")):
        assert described(error) == str(error)


def test_a_disk_that_takes_no_more_files_is_not_said_to_have_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    usual = os.statvfs(tmp_path)
    values = [*usual[:7], 0, *usual[8:]]  # f_favail
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(values))
    with pytest.raises(DiskFull) as caught, naming_full_disks(tmp_path):
        fail()
    assert "takes no more files" in described(caught.value)
    assert "remove some, or choose another directory" in described(caught.value)
    with pytest.raises(DiskFull) as caught, room_for(tmp_path / "new", 1, "Remove some."):
        fail()
    assert described(caught.value) == (
        f"{tmp_path / 'new'}: No space left on device: the disk takes no more files (it has no "
        "inodes left). Remove some."
    )
    values[5] = 0  # f_files: a file system that has no such number
    with pytest.raises(DiskFull) as caught, naming_full_disks(tmp_path):
        fail()
    assert "free some, or choose another directory" in described(caught.value)


def test_room_is_asked_for_in_numbers(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_room(tmp_path, 1)
    with pytest.raises(DiskFull, match="GB are needed, "):
        require_room(tmp_path, 2 * free + 10**10)
    entered = []
    with (
        pytest.raises(DiskFull, match=r"it takes [\d,]+ bytes, [\d,]+ are free. Free some."),
        room_for(tmp_path / "new", 2 * free + 10**10, "Free some.", at_once=True),
    ):
        entered.append(True)
    assert not entered
