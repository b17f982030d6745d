"""Files from outside: whatever has the name of one, what is read, and what is said."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from diy_core.errors import CheckpointError
from diy_core.system.outside import (
    is_there,
    names_in,
    open_own,
    open_regular,
    read_bytes,
    read_text,
    require_regular,
    require_tree,
)
from tests.odd_files import ODD_FILES, as_nobody, put_odd_file

READERS: dict[str, Callable[[Path], object]] = {
    "open_regular": lambda path: open_regular(path).close(),
    "read_bytes": read_bytes,
    "read_text": read_text,
    "is_there": is_there,
    "require_regular": require_regular,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ODD_FILES)
def test_only_regular_files_are_opened(tmp_path: Path, kind: str, reader: str) -> None:
    put_odd_file(tmp_path / "x", kind)
    with pytest.raises(CheckpointError, match=ODD_FILES[kind]) as refused:
        READERS[reader](tmp_path / "x")
    assert refused.value.where == tmp_path / "x"


def test_a_device_is_none() -> None:
    with pytest.raises(CheckpointError, match="/dev/zero: cannot be read: it is a device, not"):
        read_bytes("/dev/zero")


def test_a_file_and_links_to_it_are_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("ü\n".encode())
    (tmp_path / "link").symlink_to("x")
    assert read_text(tmp_path / "link") == "ü\n"
    assert is_there(str(tmp_path / "link"))
    with open_regular(tmp_path / "link") as file:
        assert (file.read(1), file.read()) == (b"\xc3", b"\xbc\n")


def test_only_what_has_no_name_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert not is_there(tmp_path / "gone")
    assert not is_there(tmp_path / "gone" / "too")
    assert not is_there(tmp_path / "file" / "too")
    with pytest.raises(CheckpointError, match="gone: cannot be read: it does not exist"):
        read_bytes(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        is_there(tmp_path / ("x" * 300))
    with pytest.raises(CheckpointError, match="cannot be read: embedded null byte"):
        is_there(tmp_path / "x\0y")


def test_no_more_than_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", limit=5) == b"12345"
    with pytest.raises(CheckpointError, match="is longer than 4 bytes"):
        read_bytes(tmp_path / "x", limit=4)
    os.truncate(tmp_path / "x", 1 << 40)  # holes
    with pytest.raises(CheckpointError, match="is longer than 67108864 bytes"):
        read_text(tmp_path / "x")


def test_a_file_whose_size_is_not_told_is_read_up_to_the_limit() -> None:
    assert len(read_bytes("/proc/self/status")) > 100
    with pytest.raises(CheckpointError, match="is longer than 10 bytes"):
        read_bytes("/proc/self/status", limit=10)


def test_a_text_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="x: is not UTF-8"):
        read_text(tmp_path / "x")


@pytest.mark.parametrize(
    ("target", "advice"),
    [
        ("../../blobs/0a1b", "not downloaded to the end, or was removed from the cache; download"),
        (".git/annex/objects/Fx/0k/SHA256E-s3--0a/SHA256E-s3--0a", "run `git annex get` where it"),
    ],
)
def test_of_a_link_to_nothing_the_remedy_follows_from_what_made_it(
    tmp_path: Path, target: str, advice: str
) -> None:
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(CheckpointError, match=f"is a link to {target}, .*not exist: .*{advice}"):
        read_bytes(tmp_path / "link")


def test_names_in_a_directory(tmp_path: Path) -> None:
    for name in ("b", "a", ".c"):
        (tmp_path / name).touch()
    assert names_in(tmp_path) == [".c", "a", "b"]
    assert names_in(tmp_path / "gone") == []
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(CheckpointError, match="link: is a link to gone, which does not exist"):
        names_in(tmp_path / "link")
    with pytest.raises(CheckpointError, match="a: cannot be read: Not a directory"):
        names_in(tmp_path / "a")


def test_a_folder_that_may_not_be_read_is_not_empty() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0)
        with as_nobody():
            with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
                names_in(folder)
            with pytest.raises(CheckpointError, match="x: cannot be read: Permission denied"):
                is_there(f"{folder}/x")


@pytest.mark.parametrize("kind", ODD_FILES)
def test_a_tree_holds_regular_files_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    (tmp_path / "a" / "b" / "circle").symlink_to(tmp_path)
    require_tree(tmp_path)
    put_odd_file(tmp_path / "a" / "x", kind)
    if kind == "directory":
        require_tree(tmp_path)
    else:
        with pytest.raises(CheckpointError, match=f"a/x: {ODD_FILES[kind]}"):
            require_tree(tmp_path)


def test_what_is_added_to_is_no_link(tmp_path: Path) -> None:
    log, link = tmp_path / "log", tmp_path / "link"
    with open_own(log, "") as file:
        file.write(b"one\n")
    with open_own(log, "") as file:
        file.write(b"two\n")
        file.truncate(4)
        file.write(b"three\n")
    link.symlink_to(log)
    with pytest.raises(CheckpointError, match=r"link: is a link, and that is bad: remove it"):
        open_own(link, "that is bad: remove it")
    assert log.read_text() == "one\nthree\n"
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CheckpointError, match="it is a FIFO"):
        open_own(tmp_path / "fifo", "")


def test_a_link_that_comes_while_a_file_is_opened_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "log").symlink_to(tmp_path / "mine")
    monkeypatch.setattr(os.path, "islink", lambda path: False)
    with pytest.raises(OSError, match="symbolic links"):
        open_own(tmp_path / "log", "")
