"""Files that are read are the same at the end, or the reading is refused."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from diy_core.errors import CheckpointError
from diy_core.system import outside
from diy_core.system.outside import is_there, open_regular, read_bytes, require_tree
from diy_core.system.sources import Sources, unchanged_sources

CHANGED = "was changed or replaced while it was read: start again when no other program writes"


def replace(file: Path) -> None:
    """By another file with the same content and times."""
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    os.replace(other, file)


def modify(file: Path) -> None:
    """In place, and with its times put back."""
    before = file.stat()
    with file.open("r+b") as stream:
        stream.write(b"y")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], object]] = {
    "replaced": replace,
    "modified": modify,
    "cut": lambda file: os.truncate(file, 1),
    "longer": lambda file: os.truncate(file, 9),
    "gone": Path.unlink,
    "FIFO": lambda file: (file.unlink(), os.mkfifo(file)),
}


def read_and(change: Callable[[Path], object], file: Path) -> None:
    """Read a file while it is changed."""
    with unchanged_sources():
        assert not is_there(file) or read_bytes(file) == b"abc"
        change(file)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_refused(tmp_path: Path, change: str) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match=f"x: {CHANGED}"):
        read_and(CHANGES[change], tmp_path / "x")


def test_what_stays_as_it_was_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with unchanged_sources():
        assert read_bytes(tmp_path / "x") == b"abc"
        assert not is_there(tmp_path / "y")
        (tmp_path / "z").touch()  # which nobody read


def test_what_was_not_there_still_is_not(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"x: {CHANGED}"):
        read_and(Path.touch, tmp_path / "x")


def test_a_link_that_is_moved_is_another_file(tmp_path: Path) -> None:
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(name)
    (tmp_path / "latest").symlink_to("1")
    (tmp_path / "new").symlink_to("2")
    with unchanged_sources():
        read_bytes(tmp_path / "latest" / "x")
        os.replace(tmp_path / "new", tmp_path / "latest")
        with pytest.raises(CheckpointError, match=f"latest/x: {CHANGED}"):
            read_bytes(tmp_path / "latest" / "x")
        (tmp_path / "latest").unlink()
        (tmp_path / "latest").symlink_to("1")


def test_a_file_that_changes_while_all_of_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Growing(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            found = super().read(size)
            (tmp_path / "x").write_bytes(b"abcd")
            return found

    (tmp_path / "x").write_bytes(b"abc")
    monkeypatch.setattr(outside, "open_regular", Growing)
    with pytest.raises(CheckpointError, match=f"x: {CHANGED}"):
        read_bytes(tmp_path / "x")


def test_all_that_changed_are_named(tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        (tmp_path / name).write_bytes(b"abc")
    sources = Sources()
    with sources.recording():
        require_tree(tmp_path)
    sources.require_unchanged()
    (tmp_path / "x").write_bytes(b"abcd")
    (tmp_path / "z").unlink()
    with pytest.raises(CheckpointError) as refused:
        sources.require_unchanged()
    assert refused.value.where == str(tmp_path)
    assert [re.split(" ", fault)[0] for fault in refused.value.faults] == [
        str(tmp_path / name) for name in ("x", "z")
    ]


def test_only_what_lies_below_the_roots_is_recorded(tmp_path: Path) -> None:
    for name in ("a", "ab", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    sources = Sources(tmp_path / "a", tmp_path / "b" / "x")
    with sources.recording():
        for name in ("a", "ab", "b"):
            read_bytes(tmp_path / name / "x")
    (tmp_path / "ab" / "x").write_text("changed")
    sources.require_unchanged()
    (tmp_path / "b" / "x").write_text("changed")
    with pytest.raises(CheckpointError, match="b/x"):
        sources.require_unchanged()


def test_the_error_of_a_reader_gives_way_to_its_cause(tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise ValueError("no JSON")

    def change_and_fail(file: Path) -> None:
        replace(file)
        fail(file)

    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match=CHANGED) as refused:
        read_and(change_and_fail, tmp_path / "x")
    assert str(refused.value.__cause__) == "no JSON"
    with pytest.raises(ValueError, match="no JSON"):
        read_and(fail, tmp_path / "x")


def test_each_thread_and_block_records_for_itself(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    inner, outer = Sources(), Sources()
    with outer.recording():
        thread = threading.Thread(target=lambda: open_regular(tmp_path / "x").close())
        thread.start()
        thread.join()
        with inner.recording():
            pass
    open_regular(tmp_path / "x").close()
    (tmp_path / "x").unlink()
    outer.require_unchanged()
    inner.require_unchanged()
    (tmp_path / "x").touch()
    with outer.recording(), inner.recording():
        read_bytes(tmp_path / "x")
    (tmp_path / "x").unlink()
    for sources in (outer, inner):
        with pytest.raises(CheckpointError, match=CHANGED):
            sources.require_unchanged()


@pytest.mark.parametrize(
    ("change", "alone"),
    [
        (lambda file: file.chmod(0o640), True),
        (lambda file: os.link(file, file.with_name("link")), True),
        (lambda file: file.write_bytes(b"abcd"), False),
    ],
    ids=["mode", "link", "content"],
)
def test_a_change_beside_the_content_is_told_apart(
    tmp_path: Path, change: Callable[[Path], object], alone: bool
) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match=CHANGED) as refused:
        read_and(change, tmp_path / "x")
    said = "sets its mode, links it or labels it (size and time are as before)"
    assert (said in str(refused.value)) is alone
