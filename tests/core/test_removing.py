"""Removing follows no link, crosses no mount, and goes as far as it can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diy_core.system import mounts
from diy_core.system.removing import remove_tree
from tests.other_user import root_alone, run_as_nobody
from tests.torture.disks import name_space

ROOT = Path(__file__).parents[2]


def test_a_tree_goes_and_what_its_links_lead_to_stays(tmp_path: Path) -> None:
    kept, tree = tmp_path / "kept", tmp_path / "tree"
    (kept / "deep").mkdir(parents=True)
    (kept / "deep" / "file").write_text("mine")
    (tree / "closed" / "inside").mkdir(parents=True)
    (tree / "folder").symlink_to(kept)
    (tree / "file").symlink_to(kept / "deep" / "file")
    (tree / "loop").symlink_to("loop")
    os.link(kept / "deep" / "file", tree / "hard")
    os.mkfifo(tree / "pipe")
    (tree / "closed").chmod(0)
    remove_tree(tree)
    remove_tree(tree)  # nothing there is no error
    remove_tree(tmp_path / "no" / "parent")
    assert os.listdir(tmp_path) == ["kept"]
    assert (kept / "deep" / "file").read_text() == "mine"
    (tmp_path / "link").symlink_to(kept)
    remove_tree(tmp_path / "link")
    assert (kept / "deep" / "file").exists()


def test_all_that_can_be_removed_is_and_the_rest_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "file").touch()
    unlink, seen = os.unlink, []

    def fail_once(path: str, *, dir_fd: int | None = None) -> None:
        seen.append(path)
        if len(seen) == 2:
            raise PermissionError(13, "Permission denied", path)
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", fail_once)
    with pytest.raises(PermissionError) as caught:
        remove_tree(tmp_path / "tree")
    left = list((tmp_path / "tree").rglob("file"))
    assert [caught.value.filename] == [str(path) for path in left]
    assert len(list((tmp_path / "tree").iterdir())) == 1


_MOUNTED = """
import os, subprocess, sys
from pathlib import Path
from diy_core.checkpoints.atomic import atomic_directory, atomic_file
from diy_core.errors import CheckpointError
from diy_core.system.removing import remove_tree
root = Path(sys.argv[1])
precious = root / "precious"
precious.mkdir()
(precious / "only copy").write_text("mine")
model = root / "my model"
for place in ("a b", "c/d"):
    (model / place).mkdir(parents=True)
subprocess.run(["mount", "--bind", precious, model / "a b"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", model / "c/d"], check=True)
(model / "c/d/also").write_text("mine")
def refused(make, path):
    try:
        with make(path):
            pass
    except CheckpointError as error:
        print(error)
for path in (model, model / "a b"):
    refused(atomic_directory, path)
(root / "file").touch()
subprocess.run(["mount", "--bind", precious / "only copy", root / "file"], check=True)
refused(atomic_file, root / "file")
with atomic_directory(model / "a b" / "inside"):  # on that other file system
    pass
print(sorted(os.listdir(precious)))
try:
    remove_tree(model)
except OSError as error:
    print(error.filename, error.strerror)
print(sorted(os.listdir(precious)), os.listdir(model / "c/d"))
"""


def test_a_mount_is_neither_emptied_nor_crossed_nor_replaced(tmp_path: Path) -> None:
    try:
        prefix = name_space()
    except PermissionError as error:
        pytest.skip(f"no mounts of its own: {error}")
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _MOUNTED, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    below, itself, file, inside, left, precious = done.stdout.replace(f"{tmp_path}/", "").split(
        "\n"
    )[:6]
    assert below == (
        "my model: is not replaced: another file system is mounted below it, at my model/a b: "
        "unmount that, or choose another place"
    )
    assert itself.startswith("my model/a b: is a mount point, which cannot be replaced")
    assert file.startswith("file: is a mount point, which cannot be replaced")
    assert inside == "['inside', 'only copy']"
    assert left == "my model/a b is a mount point"
    assert precious == "['inside', 'only copy'] ['also']"


def test_mount_points_are_read_with_their_blanks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Path("/proc") in mounts.mount_points()
    (tmp_path / "info").write_bytes(b"36 35 98:0 / /a\\040b\\134c rw master:1 - ext4 /dev/x rw\n")
    monkeypatch.setattr(mounts, "_MOUNTS", tmp_path / "info")
    assert mounts.mount_points() == [Path("/a b\\c")]
    monkeypatch.setattr(mounts, "_MOUNTS", tmp_path / "none")
    assert mounts.mount_points() == []


@root_alone
def test_who_is_not_root_removes_what_its_owner_closed(folder_of_all: Path) -> None:
    folder_of_all.chmod(0o777)
    said = run_as_nobody(
        "from diy_core.system.removing import remove_tree\n"
        "for mode in (0, 0o500, 0o300, 0o600):\n"
        "    (folder / 'tree/closed/inside').mkdir(parents=True)\n"
        "    (folder / 'tree/closed/file').touch()\n"
        "    (folder / 'tree/closed').chmod(mode)\n"
        "    remove_tree(folder / 'tree')\n"
        "    print(os.listdir(folder))",
        folder_of_all,
    )
    assert said == "[]\n" * 4
