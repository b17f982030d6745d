"""A place to write to is not empty, and what is there is told apart."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

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
