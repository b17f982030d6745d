"""A directory is written whole or not at all, also where the writer is killed at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diy_core import CheckpointError
from diy_core.checkpoints.atomic import atomic_directory, atomic_file, recover
from diy_core.system import renaming

OLD = {"config": "old", "weights": "old weights"}
NEW = {"config": "new", "weights": "new weights", "deep/er": "new file"}


def write(path: Path, content: dict[str, str]) -> None:
    with atomic_directory(path) as temporary:
        for name, text in content.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(text)


def write_and_be_interrupted(path: Path) -> None:
    with atomic_directory(path) as temporary:
        (temporary / "half").write_text("half")
        raise KeyboardInterrupt


def read(path: Path) -> dict[str, str]:
    return {str(f.relative_to(path)): f.read_text() for f in path.rglob("*") if f.is_file()}


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


@pytest.mark.parametrize("as_text", [False, True])
def test_a_new_directory_appears_and_an_old_one_is_replaced(tmp_path: Path, as_text: bool) -> None:
    path = tmp_path / "model"
    for content in (OLD, NEW):
        with atomic_directory(str(path) if as_text else path) as temporary:
            place = temporary.parent
            assert place.parent == path.parent  # the same disk, so that a rename is one step
            assert place.name.startswith(".model.tmp-")
            assert place.stat().st_mode & 0o777 == 0o700  # nobody else reads what is not whole
            for name, text in content.items():
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_text(text)
            assert not path.exists() or read(path) == OLD
        assert read(path) == content
        assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("before", [None, OLD])
def test_an_error_inside_leaves_everything_as_it_was(
    tmp_path: Path, before: dict[str, str] | None
) -> None:
    path = tmp_path / "model"
    if before:
        write(path, before)
    with pytest.raises(KeyboardInterrupt):
        write_and_be_interrupted(path)
    assert names(tmp_path) == (["model"] if before else [])
    assert not before or read(path) == before


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system, or a file system, that cannot exchange two names."""
    monkeypatch.setattr(renaming, "_rename", lambda old, new, how: False)


def test_an_error_in_the_exchange_leaves_the_old_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(old: Path, new: Path, how: int) -> bool:
        raise OSError("no space left on device")

    write(tmp_path / "model", OLD)
    monkeypatch.setattr(renaming, "_rename", fail)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "model", NEW)
    assert read(tmp_path / "model") == OLD
    assert names(tmp_path) == ["model"]


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("failing", [1, 2])
def test_an_error_in_either_move_leaves_the_old_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    path, calls, rename = tmp_path / "model", [], Path.rename
    write(path, OLD)

    def fail_once(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            raise OSError("no space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(OSError, match="no space"):
        write(path, NEW)
    assert len(calls) >= failing
    assert read(path) == OLD
    assert names(tmp_path) == ["model"]


# For each step a fork, in which every call that changes the disk is counted, and which dies before
# call number `step`; until one comes to its end.
_DIES = """
import os, signal, sys
from pathlib import Path
from diy_core.system import renaming
from diy_core.checkpoints.atomic import atomic_directory
def write(path, content):
    with atomic_directory(path) as temporary:
        for name, text in content.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_text(text)
def dying(call):
    def wrapped(*args, **kwargs):
        global done
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        return call(*args, **kwargs)
    return wrapped
folder, how, done = Path(sys.argv[1]), sys.argv[2], 0
for step in range(100):
    (folder / str(step)).mkdir()
    path = folder / str(step) / "model"
    write(path, {old!r})
    child = os.fork()
    if not child:
        if how == "two moves":
            renaming._rename = lambda old, new, how: False
        for name in ("mkdir", "link", "unlink", "rmdir", "rename", "replace", "write", "fsync"):
            setattr(os, name, dying(getattr(os, name)))
        renaming._rename = dying(renaming._rename)
        write(path, {new!r})
        os._exit(0)
    if not os.waitpid(child, 0)[1]:
        break
""".replace("{old!r}", repr(OLD)).replace("{new!r}", repr(NEW))


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


@pytest.mark.parametrize("how", ["exchange", "two moves"])
def test_a_writer_killed_at_any_step_leaves_the_old_directory_or_the_new_one(
    tmp_path: Path, how: str
) -> None:
    with start(_DIES, tmp_path, how) as process:
        pass
    assert process.returncode == 0
    seen, missing = [], 0
    for folder in sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name)):
        path = folder / "model"
        missing += not path.exists()
        recover(path)  # what the next write does first
        seen.append(read(path))
        assert names(folder) == ["model"], folder.name
        assert seen[-1] in (OLD, NEW), folder.name
        write(path, OLD)
        assert names(folder) == ["model"], folder.name
    assert len(seen) < 100, "it never ended"
    assert seen == sorted(seen, key=lambda content: content == NEW)  # old, old, ..., new, new
    assert seen.count(OLD) >= 10
    assert seen.count(NEW) >= 5
    # Between the two moves (the try to rename without replacing comes there too) only recover()
    # helps; an exchange has no between.
    assert missing == (2 if how == "two moves" else 0)


_WAITS = """
import sys
from diy_core.checkpoints.atomic import atomic_directory
with atomic_directory(sys.argv[1]) as temporary:
    (temporary / "config").write_text("slow")
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("before", [None, OLD])
def test_another_process_that_is_still_writing_is_left_alone(
    tmp_path: Path, before: dict[str, str] | None
) -> None:
    path = tmp_path / "model"
    if before:
        write(path, before)
    with start(_WAITS, path) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        recover(path)
        write(path, NEW)
        assert read(path) == NEW
        process.stdin.write("go on\n")
    assert process.returncode == 0
    assert read(path) == {"config": "slow"}
    assert names(tmp_path) == ["model"]


def kill_a_writer(path: Path, program: str = _WAITS) -> None:
    with start(program, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()


def test_remains_are_removed_once_their_writer_is_dead(tmp_path: Path) -> None:
    path = tmp_path / "model"
    kill_a_writer(path)
    assert len(names(tmp_path)) == 1
    recover(path)
    assert names(tmp_path) == []


def test_an_old_directory_is_not_restored_under_a_living_writer(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_directory(path) as temporary:
        (temporary / "config").write_text("new")
        aside = temporary.parent / "old"
        aside.mkdir()  # as it stands between the two moves
        recover(path)
        assert aside.is_dir()
        assert not path.exists()
        assert temporary.is_dir()
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("name", ["model", "model[1]", "*", "m.del", "n" * 255, "ö" * 127])
@pytest.mark.parametrize("mark", [None, "", "{}", '{"program": "diy-lm", "place": "x"}'])
def test_what_bears_no_mark_is_not_touched_whatever_it_is_called(
    tmp_path: Path, name: str, mark: str | None
) -> None:
    cut = os.fsdecode(os.fsencode(name)[:230])
    others = [
        f".{cut}.old",
        f".{cut}.tmp-0123abcd",
        f".{cut}.tmp-0123abcd.lock",
        f".{cut}.tmp-notes",
        ".other.tmp-0123abcd",
        "other",
    ]
    for other in others:
        (tmp_path / other).mkdir()
        if mark is not None:
            (tmp_path / other / "owner").write_text(mark)
    (tmp_path / f".{cut}.tmp-fedcba98").write_text("")
    others.append(f".{cut}.tmp-fedcba98")
    for content in (OLD, NEW):
        write(tmp_path / name, content)
        assert read(tmp_path / name) == content
    recover(tmp_path / name)
    assert names(tmp_path) == sorted([*others, name])
    assert all((tmp_path / other / "owner").exists() for other in others[:-1]) == (mark is not None)


def test_remains_of_one_name_are_not_taken_for_those_of_another(tmp_path: Path) -> None:
    path = tmp_path / "model"
    kill_a_writer(path)
    (left,) = names(tmp_path)
    other = left.replace(".model.", ".other.")
    (tmp_path / left).rename(tmp_path / other)
    for name in ("model", "other"):
        recover(tmp_path / name)
    assert names(tmp_path) == [other]


def test_a_link_is_written_through(tmp_path: Path) -> None:
    write(tmp_path / "target", OLD)
    link = tmp_path / "latest"
    link.symlink_to("target")
    for content in (NEW, OLD):
        write(link, content)
        assert link.is_symlink()
        assert read(tmp_path / "target") == content
        assert names(tmp_path) == ["latest", "target"]


def test_links_inside_are_carried_and_may_dangle(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "model") as temporary:
        (temporary / "link").symlink_to("nowhere")
    assert (tmp_path / "model" / "link").is_symlink()


@pytest.mark.usefixtures("no_exchange")
def test_everything_is_on_the_disk_before_the_first_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, rename = os.fsync, Path.rename

    def record_sync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def record_move(self: Path, target: Path) -> Path:
        events.append("move")
        return rename(self, target)

    write(tmp_path / "model", OLD)
    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_move)
    write(tmp_path / "model", NEW)
    first = events.index("move")
    assert {"config", "weights", "er", "deep"} < set(events[:first])
    assert events[first:] == ["move", "move", tmp_path.name]


def test_everything_is_on_the_disk_before_the_exchange(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    sync, rename = os.fsync, renaming._rename

    def record_sync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def record_exchange(old: Path, new: Path, how: int) -> bool:
        events.append("exchange")
        return rename(old, new, how)

    write(tmp_path / "model", OLD)
    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(renaming, "_rename", record_exchange)
    write(tmp_path / "model", NEW)
    first = events.index("exchange")
    assert {"config", "weights", "er", "deep"} < set(events[:first])
    assert events[first:] == ["exchange", tmp_path.name]


@pytest.mark.parametrize("make", [atomic_directory, atomic_file])
def test_an_error_that_names_no_file_gets_the_name_of_what_was_written(
    tmp_path: Path, make: Any
) -> None:
    full = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space left") as error, make(tmp_path / "model"):
        raise full
    assert error.value.filename == str(tmp_path / "model")
    named = OSError(2, "No such file or directory", "input")
    with pytest.raises(OSError, match="No such file") as error, make(tmp_path / "model"):
        raise named
    assert error.value.filename == "input"


# One file, and targets that must not be replaced.


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "model.gguf"
    if before:
        path.write_text(before)

    def write_half() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert names(tmp_path) == (["model.gguf"] if before else [])
    assert not before or path.read_text() == before
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() or path.read_text() == before
    assert path.read_text() == "new"
    assert names(tmp_path) == ["model.gguf"]


@pytest.mark.usefixtures("no_exchange")
def test_a_file_is_replaced_where_names_cannot_be_exchanged(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_file(tmp_path / "model.gguf") as temporary:
            temporary.write_text(text)
        assert (tmp_path / "model.gguf").read_text() == text
        assert names(tmp_path) == ["model.gguf"]


def test_a_file_that_is_still_being_written_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with atomic_file(path) as temporary:
        temporary.write_text("slow")
        recover(path)
        with atomic_file(path) as other:
            other.write_text("new")
        assert path.read_text() == "new"
    assert path.read_text() == "slow"
    assert names(tmp_path) == ["model.gguf"]


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("make", [atomic_directory, atomic_file])
def test_without_overwrite_nothing_is_replaced_not_even_what_appears_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(renaming, "_rename", lambda old, new, how: False)
    path = tmp_path / "model"
    with make(path, overwrite=False):
        pass
    assert path.exists()
    with (
        pytest.raises(CheckpointError, match="exists already: overwrite=True"),
        make(path, overwrite=False),
    ):
        pytest.fail("entered")
    late = tmp_path / "late"

    def write_late() -> None:
        with make(late, overwrite=False):
            late.mkdir()
            (late / "mine").write_text("years")

    with pytest.raises(CheckpointError, match="exists already: overwrite=True"):
        write_late()
    assert (late / "mine").read_text() == "years"
    assert names(tmp_path) == ["late", "model"]


def test_the_remains_of_a_killed_file_writer_are_removed(tmp_path: Path) -> None:
    program = _WAITS.replace("atomic_directory", "atomic_file").replace(' / "config"', "")
    kill_a_writer(tmp_path / "model.gguf", program)
    assert len(names(tmp_path)) == 1
    with atomic_file(tmp_path / "model.gguf") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == ["model.gguf"]
    with pytest.raises(CheckpointError, match="is a directory"), atomic_file(tmp_path):
        pytest.fail("entered")


def test_a_file_in_the_way_or_no_parent_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(CheckpointError, match="exists and is not a directory"),
        atomic_directory(tmp_path / "file"),
    ):
        pytest.fail("entered")
    with (
        pytest.raises(CheckpointError, match=r"parent directory .*gone does not exist"),
        atomic_directory(tmp_path / "gone" / "model"),
    ):
        pytest.fail("entered")
    for overwrite in (True, False):  # what is not replaced is not said to be
        with (
            pytest.raises(CheckpointError, match="is not a directory: choose another place"),
            atomic_directory(tmp_path / "file", overwrite=overwrite),
        ):
            pytest.fail("entered")
        with (
            pytest.raises(CheckpointError, match="is a directory, and a file is to be written"),
            atomic_file(tmp_path, overwrite=overwrite),
        ):
            pytest.fail("entered")
    with (
        pytest.raises(CheckpointError, match=r"lies in .*file, which is a file: choose another"),
        atomic_file(tmp_path / "file" / "model"),
    ):
        pytest.fail("entered")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"
    recover(tmp_path / "gone" / "model")
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("whole", [atomic_directory, atomic_file])
def test_errors_name_what_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught, whole("model") as temporary:
        raise CheckpointError(temporary, f"{temporary}/x is damaged")
    assert str(caught.value) == "model: model/x is damaged"
    with pytest.raises(OSError, match="no such") as failed, whole("model") as temporary:
        raise FileNotFoundError(2, "no such file", str(temporary / "x"))
    assert failed.value.filename == "model/x"


@pytest.mark.parametrize("whole", [atomic_directory, atomic_file])
def test_a_place_where_nothing_can_be_made_is_named_as_it_was_given(
    monkeypatch: pytest.MonkeyPatch, whole: Any
) -> None:
    monkeypatch.chdir("/proc")  # refuses new files to everyone
    for given in ("model", "/proc/model"):
        with pytest.raises(OSError) as caught, whole(given):
            pytest.fail("entered")
        assert caught.value.filename == given
        assert ".tmp-" not in str(caught.value)


@pytest.mark.parametrize("name", ["m" * 250, "é" * 127])
def test_a_name_as_long_as_names_can_be_is_written_and_recovered(tmp_path: Path, name: str) -> None:
    kill_a_writer(tmp_path / name)
    assert len(names(tmp_path)) == 1
    write(tmp_path / name, NEW)
    assert names(tmp_path) == [name]


def test_a_name_that_is_too_long_is_named(tmp_path: Path) -> None:
    path = tmp_path / ("m" * 256)
    with pytest.raises(OSError, match="File name too long") as caught, atomic_directory(path):
        pytest.fail("entered")
    assert caught.value.filename == str(path)
