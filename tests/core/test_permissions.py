"""What replaces a file or a directory takes over its mode, owner, group and access list."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from diy_core.checkpoints.atomic import atomic_directory, atomic_file
from tests.other_user import NOBODY, root_alone, run_as_nobody

_ACL = "system.posix_acl_access"


@pytest.fixture(autouse=True)
def usual_mask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write(path: Path, *names: str) -> Path:
    with atomic_directory(path) as folder:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("")
    return path


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_what_is_new_has_what_the_mask_leaves(tmp_path: Path, mask: int) -> None:
    os.umask(mask)
    model = write(tmp_path / "model", "config", "deep/er")
    assert [mode(model), mode(model / "deep")] == [0o777 & ~mask] * 2
    assert [mode(model / "config"), mode(model / "deep/er")] == [0o666 & ~mask] * 2
    with atomic_file(tmp_path / "file"):
        pass
    assert mode(tmp_path / "file") == 0o666 & ~mask


@pytest.mark.parametrize("wanted", [0o700, 0o755, 0o2770, 0o1777, 0o500, 0o600])
def test_modes_are_handed_on_by_name(tmp_path: Path, wanted: int) -> None:
    model = write(tmp_path / "model", "config", "deep/er")
    (model / "deep").chmod(0o711)
    (model / "config").chmod(0o640)
    (model / "deep/er").chmod(0o604)
    model.chmod(wanted)
    write(model, "config", "deep/er")
    assert mode(model) == wanted
    model.chmod(0o700)
    assert mode(model / "deep") == 0o711
    assert [mode(model / "config"), mode(model / "deep/er")] == [0o640, 0o604]


def test_what_has_no_namesake_is_as_closed_as_what_it_replaces(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "shard-1-of-2", "shard-2-of-2", "a/b")
    for name in ("shard-1-of-2", "shard-2-of-2"):
        (model / name).chmod(0o640)
    (model / "a").chmod(0o750)
    write(model, "shard", "c/d", "a/b")
    assert mode(model / "shard") == 0o640
    assert mode(model / "c") == 0o750
    assert mode(model / "c/d") == 0o640
    assert mode(model / "a/b") == 0o644


def test_links_say_nothing_and_what_they_lead_to_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.touch()
    precious.chmod(0o604)
    model = write(tmp_path / "model", "config", "weights")
    (model / "config").chmod(0o640)
    with atomic_directory(model) as folder:
        (folder / "config").symlink_to(precious)
        (folder / "new").symlink_to(precious)
    assert mode(precious) == 0o604
    write(model, "config")
    assert (mode(model / "config"), mode(precious)) == (0o644, 0o604)


def test_a_file_in_the_place_of_a_folder_has_the_mode_of_a_file(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "a/b")
    (model / "a/b").chmod(0o640)
    (model / "a").chmod(0o750)
    write(model, "a")
    assert mode(model / "a") == 0o640


def test_what_is_kept_does_not_close_what_is_new(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "config", "diary")
    (model / "diary").chmod(0o600)
    with atomic_directory(model, own=lambda name: name == "config") as folder:
        (folder / "weights").touch()
    assert (mode(model / "weights"), mode(model / "diary")) == (0o644, 0o600)


@pytest.mark.parametrize("wanted", [0o600, 0o664, 0o400])
def test_a_file_hands_on_its_mode(tmp_path: Path, wanted: int) -> None:
    (tmp_path / "file").touch(mode=0o600)
    (tmp_path / "file").chmod(wanted)
    with atomic_file(tmp_path / "file") as file:
        file.write_text("new")
    assert mode(tmp_path / "file") == wanted
    assert (tmp_path / "file").read_text() == "new"


@root_alone
def test_owner_and_group_are_handed_on_also_to_what_has_no_namesake(tmp_path: Path) -> None:
    model = write(tmp_path / "model", "config")
    os.chown(model, 1234, 4321)
    os.chown(model / "config", 1234, 99)
    write(model, "config", "deep/er")
    found = {path.name: path.stat() for path in (model, *model.rglob("*"))}
    assert {name: (one.st_uid, one.st_gid) for name, one in found.items()} == {
        "model": (1234, 4321),
        "config": (1234, 99),
        "deep": (1234, 4321),
        "er": (1234, 4321),
    }


@root_alone
def test_where_the_group_cannot_be_handed_on_its_rights_go(folder_of_all: Path) -> None:
    model = write(folder_of_all / "model", "config")
    folder_of_all.chmod(0o777)
    for path, wanted in ((model, 0o2775), (model / "config", 0o664)):
        os.chown(path, NOBODY, 4321)
        path.chmod(wanted)
    run_as_nobody(
        "with atomic_directory(folder / 'model') as new:\n"
        "    for name in ('config', 'weights'):\n"
        "        (new / name).touch()",
        folder_of_all,
    )
    assert {path.stat().st_gid for path in (model, *model.iterdir())} == {NOBODY}
    assert [mode(model), mode(model / "config"), mode(model / "weights")] == [0o705, 0o604, 0o604]


def access_list(group: int) -> bytes:
    """Owner rw-, a named group r--, group ---, mask r--, others ---."""
    undefined = 0xFFFFFFFF
    entries = [(1, 6, undefined), (4, 0, undefined), (8, 4, group), (16, 4, undefined)]
    entries.append((32, 0, undefined))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def test_access_lists_are_handed_on_and_none_is_inherited(tmp_path: Path) -> None:
    with_list, without = tmp_path / "with", tmp_path / "without"
    for path in (with_list, without):
        path.touch(mode=0o600)
    try:
        os.setxattr(with_list, _ACL, access_list(4321))
    except OSError as error:
        pytest.skip(f"no access lists here: {error}")
    wanted = os.getxattr(with_list, _ACL)
    os.setxattr(tmp_path, "system.posix_acl_default", access_list(99))
    for path in (with_list, without):
        with atomic_file(path) as file:
            file.write_text("new")
    assert os.getxattr(with_list, _ACL) == wanted
    assert _ACL not in os.listxattr(without)
    assert mode(without) == 0o600


def attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path) if name[:5] == "user."}


def test_extended_attributes_of_users_are_handed_on_by_name(tmp_path: Path) -> None:
    model, file = write(tmp_path / "model", "config", "deep/er"), tmp_path / "file"
    file.touch()
    named = {model: b"1", model / "config": b"2", model / "deep": b"3", file: b"4"}
    try:
        for path, value in named.items():
            os.setxattr(path, "user.label", value)
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    file.chmod(0o400)
    write(model, "config", "deep/er", "new")
    with atomic_file(file) as new:
        new.write_text("new")
    assert {path: attributes(path) for path in named} == {
        path: {"user.label": value} for path, value in named.items()
    }
    assert attributes(model / "deep/er") == attributes(model / "new") == {}
    assert mode(file) == 0o400


def test_attributes_that_cannot_be_handed_on_are_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    model = write(tmp_path / "model", "config")
    monkeypatch.setattr(os, "listxattr", lambda path: ["user.label"])
    monkeypatch.setattr(os, "getxattr", lambda path, name: b"1")
    monkeypatch.setattr(os, "setxattr", refuse)
    write(model, "config")
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "model: extended attributes are not handed on: user.label of config" in said[0]
    assert said[0].endswith("(Operation not supported) and 1 more")
