"""A place to write to is not empty, and what is there is told apart."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diy_core.system.places import is_stream, place


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
