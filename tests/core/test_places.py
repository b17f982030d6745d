"""A place to write to is not empty, and what is there is told apart."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path
from typing import Any

import pytest

from diy_core.checkpoints.atomic import atomic_directory, atomic_file
from diy_core.data import prepare
from diy_core.system.places import is_stream, made_directory, place


def test_an_empty_place_is_refused_with_the_option_that_gave_it() -> None:
    with pytest.raises(ValueError, match=r"^--out is empty: give a path \(\. is the current"):
        place("", "--out")
    assert place(".") == Path()
    assert place(Path("model")) == Path("model")


def test_a_stream_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    assert is_stream(tmp_path / "pipe")
    assert is_stream(Path(os.devnull))
    assert not any(map(is_stream, (tmp_path / "file", tmp_path, tmp_path / "new")))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, None])
def test_what_was_made_and_holds_nothing_is_removed(
    tmp_path: Path, error: type[BaseException] | None
) -> None:
    with contextlib.suppress(KeyboardInterrupt, ValueError), made_directory(tmp_path / "a/b/c"):
        assert (tmp_path / "a/b/c").is_dir()
        if error is not None:
            raise error
    assert not list(tmp_path.iterdir())


def test_what_was_there_or_holds_something_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with made_directory(tmp_path / "mine"):
        pass
    with made_directory(tmp_path / "mine" / "a" / "b"):
        (tmp_path / "mine" / "a" / "file").touch()
    assert [item.name for item in (tmp_path / "mine").rglob("*")] == ["a", "file"]


def test_a_directory_that_somebody_makes_meanwhile_is_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "lexists", lambda path: False)
        with made_directory(tmp_path / "a"):
            pass
    assert (tmp_path / "a").is_dir()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        error = pytest.raises((FileExistsError, NotADirectoryError), match="file")
        with error, made_directory(path):
            pass


def test_a_read_only_file_system_is_named_where_a_write_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(path: str | os.PathLike[str], *rest: object, **more: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))

    def opened(path: str, flags: int, *rest: Any, **more: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            read_only(path)
        return open_before(path, flags, *rest, **more)

    open_before = os.open
    (tmp_path / "a.txt").write_text("he")
    monkeypatch.setattr("os.mkdir", read_only)
    monkeypatch.setattr("os.open", opened)
    why = f"{re.escape(str(tmp_path))} is on a read-only file system: choose a place on another one"
    for write in (
        lambda: atomic_directory(tmp_path / "new").__enter__(),
        lambda: atomic_file(tmp_path / "a.txt").__enter__(),
        lambda: made_directory(tmp_path / "new").__enter__(),
        lambda: prepare(tmp_path / "a.txt", tmp_path / "new", tokenizer="bytes"),
    ):
        with pytest.raises(ValueError, match=rf"{re.escape(str(tmp_path))}/\S+: cannot be .*{why}"):
            write()
    assert os.listdir(tmp_path) == ["a.txt"]
